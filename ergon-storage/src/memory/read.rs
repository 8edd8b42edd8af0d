//! Answers to questions; nothing here changes the log.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::state::{Flow, State};
use crate::{
    Channel, Count, Cursor, Feed, Filter, FlowId, FlowPage, FlowRecord, Item, Message, Record, Result, Timestamp,
};

impl State {
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn flow(&self, id: &FlowId) -> Option<FlowRecord> {
        let flow = self.get(id)?;
        Some(FlowRecord { info: flow.info.clone(), input: flow.input.clone(), result: flow.result.clone() })
    }

    pub(super) fn history(&self, id: &FlowId, after: u32, limit: usize) -> Result<Vec<Record>> {
        let flow = &self.flows[&self.find(id)?];
        let after = usize::try_from(after).unwrap_or(usize::MAX);
        Ok(flow.history.iter().skip(after).take(limit).cloned().collect())
    }

    pub(super) fn messages(&self, id: &FlowId, channels: &[Channel], after: u32, limit: usize) -> Result<Vec<Message>> {
        Ok(self.flows[&self.find(id)?].mailbox.read(channels, after, limit))
    }

    pub(super) fn items(&self, id: &FlowId, feed: &Feed, after: u32, limit: usize) -> Result<Vec<Item>> {
        let items = self.flows[&self.find(id)?].feeds.get(feed).map_or(&[][..], Vec::as_slice);
        let from = items.partition_point(|item| item.seq <= after);
        Ok(items[from..].iter().take(limit).cloned().collect())
    }

    /// The flows of a filter from this number on, in their order.
    fn selected<'s>(&'s self, filter: &'s Filter, from: u64) -> impl Iterator<Item = (u64, &'s Flow)> {
        // Few of the flows that a log holds have not ended.
        let due = filter.is_about_due().then(|| {
            let (first, before) = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
            let (first, before) = (filter.due_from.unwrap_or(first), filter.due_before.unwrap_or(before));
            self.index.lanes.between(first, before).filter(|number| *number >= from).collect::<BTreeSet<u64>>()
        });
        let all = due.is_none().then(|| self.flows.range(from..).map(|(number, flow)| (*number, &**flow)));
        let due = due.into_iter().flatten().map(|number| (number, self.flow_at(number)));
        all.into_iter().flatten().chain(due).filter(|(_, flow)| filter.accepts(&flow.info))
    }

    pub(super) fn list(&self, filter: &Filter, after: Option<Cursor>, limit: usize) -> FlowPage {
        let from = after.map_or(0, |cursor| cursor.number().saturating_add(1));
        let mut page = FlowPage::default();
        let mut last = None;
        for (number, flow) in self.selected(filter, from) {
            if page.flows.len() >= limit.max(1) {
                page.next = last.map(Cursor::from_number);
                break;
            }
            page.flows.push(flow.info.clone());
            last = Some(number);
        }
        page
    }

    pub(super) fn counts(&self, filter: &Filter) -> Vec<Count> {
        let mut counts: BTreeMap<_, Count> = BTreeMap::new();
        for info in self.selected(filter, 0).map(|(_, flow)| &flow.info) {
            let key = (&info.queue, &info.flow_type, info.version, info.state);
            let count = counts.entry(key).or_insert_with(|| Count {
                queue: Arc::clone(&info.queue),
                flow_type: Arc::clone(&info.flow_type),
                version: info.version,
                state: info.state,
                flows: 0,
                oldest_due_at: None,
            });
            count.flows += 1;
            count.oldest_due_at = count.oldest_due_at.into_iter().chain(info.due_at).min();
        }
        counts.into_values().collect()
    }
}
