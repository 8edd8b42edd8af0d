-- One step forward of a running flow.

local COMPLETED_CHILD, FAILED_CHILD, CANCELLED_CHILD, REFUSED_CHILD = 1, 2, 3, 4
-- Why a commit is refused.
local LOST = -1

-- The name of the greatest number that there was when the present run of a flow began: what it starts has a greater one.
local function run_name(r)
    return warm(r).run_number > 0 and name_of(r.run_number) or r.m
end

-- The parent that hears of a flow's end. A flow that was accepted later has the id of the parent, and is another; a later
-- run did not start it.
local function hearer(r)
    if warm(r).parent == '' or r.detached == 1 then
        return
    end
    local m = number_of(r.parent)
    -- One that cannot be read does not keep its children from their ends.
    if m and m < r.m and not damaged[m] then
        fetch_cold({ m })
        local parent = row(m) or nil
        return parent and run_name(parent) < r.m and parent or nil
    end
end

-- Tells a parent how a child has ended, if it is there and may still want to know.
local function tell_parent(r, child, told)
    local parent = hearer(r)
    if parent and parent.state ~= COMPLETED and parent.state ~= CANCELLED then
        deliver(parent, CHILDREN, child, r.path .. ' ' .. r.id, told)
    end
end

-- Takes back what a flow has told its parent of its end.
local function withdraw_end(r)
    local parent = hearer(r)
    if parent then
        local own = r.path .. ' ' .. r.id
        withdraw(parent, function(_, origin) return origin == own end)
    end
end

-- Ends a flow and tells its parent, unless it `is_silent`. The result is in the history already.
local function finish(r, state, child, reason, told, is_silent)
    set(r, state, NEVER, reason)
    r.finished = now
    -- A failed flow may go on, and finds its messages where they were.
    if state ~= FAILED then
        clear(r)
    end
    done(r)
    if not is_silent then
        tell_parent(r, child, told)
    end
end

-- What a retry does; see outside.lua.
local schedule_again
-- Removes a flow with everything that belongs to it; see upkeep.lua.
local forget

local function result_of(r)
    if r.tail == 0 then
        return ''
    end
    local list = pushes[r.m]
    return list and list[#list] or call('LINDEX', prefix .. 'h:' .. r.m, -1) or ''
end

local give_up, commit
-- Lua allows so many names at once.
do
    -- A call that has started a child is made again.
    local function resume_child(r)
        if r.state == FAILED then
            schedule_again(r)
        elseif r.state == COMPLETED or r.state == CANCELLED then
            -- It may have told it before, while its parent had failed.
            withdraw_end(r)
            if r.state == COMPLETED then
                tell_parent(r, COMPLETED_CHILD, result_of(r))
            else
                tell_parent(r, CANCELLED_CHILD, r.reason)
            end
        end
    end

    local function start_child(parent, flow)
        local taken = find_id(flow.id)
        local run = run_name(parent)
        local text
        if not taken then
            text = nil
        elseif warm(taken).parent ~= flow.parent or taken.path ~= flow.path then
            text = ' belongs to a flow that this call did not start'
        elseif taken.m > run and is_what_is_wanted(header_of(taken.m) or refuse(taken.m, 'its header is gone'), flow.header) then
            if flow.detached ~= 1 then
                resume_child(taken)
            end
            return
        elseif taken.state >= COMPLETED and taken.state <= CANCELLED then
            withdraw_end(taken)
            forget(taken)
        elseif taken.m > run then
            text = " belongs to this call's child, which has not ended and runs with another value"
        else
            text = ' belongs to a child of an earlier flow or run that has not ended'
        end
        if text then
            deliver(parent, CHILDREN, REFUSED_CHILD, flow.path .. ' ' .. flow.id, 'the id ' .. flow.quoted .. text)
        else
            insert(flow, take_numbers(1))
        end
    end

    -- How the numbers of a commit come: its own, the first record's, how many records, heartbeats, consumed messages,
    -- children and items there are, how many the code has emitted or -1, where it goes, whether it sets labels, and what it
    -- has to clean up from now on.
    local COMMIT = '>I4I4I4I4I4I4I4i8BBB'
    local RUN, SUSPEND, COMPLETE, FAIL, STALL, REFUSE, CONTINUE, CANCEL = 0, 1, 2, 3, 4, 5, 6, 7
    -- The part of a row that a step changes, and where it begins and ends: see `HOT`.
    local STEP, STEP_FIRST, STEP_LAST = '>BI4I4I4', 18, 30

    -- Adds records to the history of a running flow, as most commits do, without looking at the rest of its row. Answers
    -- nothing when there is more to it.
    local function step(m, lease, commit_number, first, amount)
        local raw = raws[m]
        if not raw or rows[m] or byte(raw, 1) ~= RUNNING or sub(raw, 2, STEP_FIRST - 1) ~= lease then
            return
        end
        local _, commit_last, records = unpack_struct(STEP, raw, STEP_FIRST)
        if commit_last + 1 ~= commit_number or first ~= records + 1 then
            return
        end
        local changed_raw = sub(raw, 1, STEP_FIRST - 1) .. pack(STEP, APPLIED, commit_number, records + amount, 0)
            .. sub(raw, STEP_LAST + 1)
        raws[m], dirty_raw[m] = changed_raw, changed_raw
        local listed = pushes[m]
        if not listed and not push_first[m] then
            push_first[m], push_total[m] = at + 1, records + amount
            if amount > 1 then
                push_last[m] = at + amount
            end
        else
            -- Two commits of one flow in one call.
            local r = row(m)
            for place = at + 1, at + amount do
                push(r, argv[place])
            end
        end
        at = at + amount
        return APPLIED
    end

    -- Stalls a running flow whose lease this is because what it was claimed with cannot be read.
    give_up = function()
        local m, lease, reason = next_leased(), arg(), arg()
        local r = leased(m, lease)
        if not r or r.state ~= RUNNING then
            return 0
        end
        set(r, STALLED, NEVER, reason)
        done(r)
        return 1
    end

    -- Empties the history of a flow and puts it on the queue again, with another input.
    local function begin_again(r, input)
        local m = r.m
        withdraw(r, function() return true end)
        set(r, SCHEDULED, now)
        local header = header_of(m) or refuse(m, 'its header is gone')
        local type_end = byte(header, 1) + 5
        header = sub(header, 1, type_end + 1 + byte(header, type_end + 1)) .. input
        run_headers[m] = header
        unlinked[#unlinked + 1] = prefix .. 'h:' .. m
        r.run, r.size = r.run + 1, #header
        r.run_number = to_number(call('HGET', prefix .. 'meta', 'last'))
        r.records, r.emitted, r.cleanup, r.deliveries, r.started, r.worker = 0, 0, 0, 0, NEVER, ''
        done(r)
    end

    -- Adds items to feeds.
    local function emit(r, items, emitted)
        local m = r.m
        warm(r)
        if items[1] then
            local all, last = new_items[m] or {}, {}
            new_items[m] = all
            for place = 1, #all do
                last[all[place].feed] = all[place].seq
            end
            for place = 1, #items do
                local new = items[place]
                local seq = last[new.feed] or to_number(call('HGET', prefix .. 'o:' .. m, new.feed) or 0)
                new.seq = seq + 1
                last[new.feed] = new.seq
                new.body = pack('>I4I4I8', new.seq, r.run, r.epoch) .. new.body
                all[#all + 1] = new
            end
            hint_flow(r)
        end
        if emitted >= 0 then
            r.emitted, dirty_cold[m] = emitted, r
        end
    end

    commit = function()
        local m, lease = next_leased(), arg()
        local commit_number, first, amount, beats_amount, consumed_amount, children_amount, items_amount, emitted, kind,
            is_labelled, cleanup = unpack_struct(COMMIT, arg())
        if kind == RUN and amount > 0 and amount < ARGS_MAX and beats_amount == 0 and consumed_amount == 0
            and children_amount == 0 and items_amount == 0 and emitted < 0 and is_labelled == 0 and cleanup == 0 then
            local answer = step(m, lease, commit_number, first, amount)
            if answer then
                return answer
            end
        end
        local r = leased(m, lease)
        local records, all_beats, consumed, children = {}, {}, nil, nil
        for index = 1, amount do
            records[index] = arg()
        end
        for index = 1, beats_amount do
            all_beats[index] = arg()
        end
        if consumed_amount > 0 then
            consumed = arg()
        end
        if children_amount > 0 then
            children = {}
            for index = 1, children_amount do
                children[index] = new_flow()
                children[index].quoted = arg()
            end
        end
        local labels = is_labelled == 1 and arg()
        local items = {}
        for index = 1, items_amount do
            items[index] = { feed = arg(), is_last = arg() == '1', body = arg() }
        end
        local first_text, second_text, third_text
        if kind ~= RUN then
            first_text, second_text, third_text = arg(), arg(), arg()
        end
        if not r then
            return LOST
        end
        if r.answer ~= 0 and r.commit == commit_number then
            return r.answer
        end
        if r.state ~= RUNNING then
            return LOST
        end
        if r.commit + 1 ~= commit_number then
            return { -2, r.commit }
        end
        if amount > 0 and first ~= r.records + 1 then
            return { -3, r.records }
        end
        for index = 1, beats_amount do
            local seq = unpack_struct('>I4', all_beats[index])
            if seq < 1 or seq > r.records then
                return { -5, r.records }
            end
        end
        if kind == REFUSE then
            return -4
        end
        if beats_amount > 0 and (push_first[m] or pushes[m]) then
            -- Its last records are not there yet.
            fail(APART, 0)
        end

        if kind == CONTINUE then
            if push_first[m] or pushes[m] then
                -- Its last records are not there yet.
                fail(APART, 0)
            end
            records = {}
        end

        if labels then
            check_labels(labels)
        end

        -- From here on nothing is refused.
        if labels then
            warm(r)
            list_labels(r, r.labels, false)
            list_labels(r, labels, true)
            r.labels, dirty_cold[r.m] = labels, r
        end
        for index = 1, beats_amount do
            local list = beats[m] or {}
            list[#list + 1], beats[m] = all_beats[index], list
        end
        if amount > 0 then
            r.records = r.records + amount
            r.deliveries = 0
        end
        if (kind == COMPLETE or kind == FAIL) and first_text ~= '' then
            records[amount + 1] = first_text
            r.tail = 1
        end
        for place = 1, #records do
            push(r, records[place])
        end
        for index = 1, consumed_amount do
            remove(r, (unpack_struct('>I4', consumed, 4 * index - 3)))
        end
        if cleanup > warm(r).cleanup then
            r.cleanup, dirty_cold[m] = cleanup, r
        end
        if items_amount > 0 or emitted >= 0 then
            emit(r, items, emitted)
        end
        for index = 1, children_amount do
            start_child(r, children[index])
        end
        local answer = APPLIED
        if kind == SUSPEND then
            warm(r)
            local wake_at = unpack_struct('>i8', first_text)
            -- A deadline wakes a flow just as its own instant does.
            local due = r.cleanup == CLEANUP_UNDERWAY and wake_at or earlier(wake_at, r.deadline)
            if (due ~= NEVER and due <= now) or has_any(r, second_text, third_text) then
                answer = AWAKE
            else
                set(r, SUSPENDED, due)
                r.wake_at, r.channels, r.deliveries = wake_at, second_text, 0
                done(r)
                answer = IS_SUSPENDED
            end
        elseif kind == COMPLETE then
            finish(r, COMPLETED, COMPLETED_CHILD, '', first_text)
        elseif kind == FAIL then
            finish(r, FAILED, FAILED_CHILD, second_text, first_text)
            r.again = third_text
        elseif kind == CANCEL then
            finish(r, CANCELLED, CANCELLED_CHILD, first_text, first_text)
        elseif kind == CONTINUE then
            begin_again(r, first_text)
        elseif kind == STALL then
            set(r, STALLED, NEVER, first_text)
            r.build = '=' .. second_text
            done(r)
        end
        r.commit, r.answer = commit_number, answer
        dirty_hot[r.m] = r
        return answer
    end
end
