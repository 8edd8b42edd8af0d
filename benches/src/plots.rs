//! Throughput against concurrency, as pictures.

use std::{fs, ops::Range, path::Path};

use ergon_bench_round::{Backend, Durability, Failure, System, Work, number};
use plotters::{
    coord::combinators::IntoLogRange,
    prelude::{ChartBuilder, Circle, IntoDrawingArea, LineSeries, PathElement, SVGBackend},
    style::{Color, RGBColor, ShapeStyle, colors},
};

use crate::report::Row;

const SIZE: (u32, u32) = (760, 460);

/// A picture and its name, without the ending.
#[derive(Debug)]
pub(crate) struct Plot {
    pub(crate) name: String,
    pub(crate) title: String,
    svg: String,
}

/// One line of a picture.
struct Series {
    name: String,
    color: RGBColor,
    faint: bool,
    points: Vec<(f64, f64)>,
}

/// A picture per backend of the flows that are drained, and of the steps that the backend records.
pub(crate) fn draw(rows: &[Row]) -> Result<Vec<Plot>, Failure> {
    let mut plots = Vec::new();
    for backend in [Backend::Memory, Backend::Sqlite, Backend::Redis, Backend::Postgres] {
        for (work, metric, what) in [(Work::Scaling, "enqueue to end", "flows"), (Work::Raw, "awaited steps", "steps")]
        {
            let series = series(rows, work, backend, metric);
            if series.iter().any(|series| series.points.len() > 1) {
                let title = format!("{backend}: {what} per second against how many are under way at once");
                let svg = svg(&title, what, &series)?;
                plots.push(Plot { name: format!("{work}-{backend}"), title, svg });
            }
        }
    }
    Ok(plots)
}

/// Writes the pictures into a folder.
pub(crate) fn write(plots: &[Plot], dir: &Path) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    plots.iter().try_for_each(|plot| fs::write(dir.join(format!("{}.svg", plot.name)), &plot.svg))
}

fn series(rows: &[Row], work: Work, backend: Backend, metric: &str) -> Vec<Series> {
    let mut all: Vec<((System, Durability), Series)> = Vec::new();
    for row in rows.iter().filter(|row| row.work == work && row.backend == backend && row.metric == metric) {
        let line = (row.system, row.durability);
        let point = (number(row.concurrency), row.median);
        if let Some((_, series)) = all.iter_mut().find(|(of, _)| *of == line) {
            series.points.push(point);
            continue;
        }
        let name = match row.durability {
            Durability::None => row.system.to_string(),
            durability => format!("{} {durability}", row.system),
        };
        let faint = row.durability == Durability::Normal;
        all.push((line, Series { name, color: color(row.system), faint, points: vec![point] }));
    }
    all.into_iter().map(|(_, series)| series).collect()
}

const fn color(system: System) -> RGBColor {
    match system {
        System::Ergon => RGBColor(0xd6, 0x27, 0x28),
        System::Raw => RGBColor(0x55, 0x55, 0x55),
        System::Durare | System::DurareQueue => RGBColor(0x1f, 0x77, 0xb4),
        System::Dbos | System::DbosQueue => RGBColor(0x2c, 0xa0, 0x2c),
        System::Effectum => RGBColor(0xff, 0x7f, 0x0e),
        System::EffectumWal => RGBColor(0xbc, 0x8d, 0x22),
        System::Duroxide => RGBColor(0x94, 0x67, 0xbd),
        System::Apalis => RGBColor(0x8c, 0x56, 0x4b),
    }
}

/// Both axes are logarithmic: what is shown spans orders of magnitude.
fn svg(title: &str, what: &str, series: &[Series]) -> Result<String, Failure> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    area.fill(&colors::WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .margin_right(24)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(
            range(series, |(x, _)| x).log_scale().base(4.0),
            range(series, |(_, y)| y).log_scale().base(10.0),
        )?;
    chart
        .configure_mesh()
        .x_desc("at once")
        .y_desc(format!("{what} per second"))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .light_line_style(colors::WHITE.mix(0.0))
        .draw()?;
    for Series { name, color, faint, points } in series {
        let style = ShapeStyle { color: color.mix(if *faint { 0.45 } else { 1.0 }), filled: true, stroke_width: 2 };
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, style)))?;
    }
    chart
        .configure_series_labels()
        .background_style(colors::WHITE.mix(0.8))
        .border_style(colors::BLACK.mix(0.3))
        .draw()?;
    drop(chart);
    area.present()?;
    drop(area);
    Ok(svg)
}

fn range(series: &[Series], of: impl Fn((f64, f64)) -> f64) -> Range<f64> {
    let values = || series.iter().flat_map(|series| &series.points).map(|point| of(*point));
    let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    least * 0.8..most * 1.4
}

#[cfg(test)]
mod tests {
    use ergon_bench_round::{Case, Summary};

    use super::*;

    #[test]
    fn a_backend_that_was_measured_has_a_picture_with_every_system() {
        let row = |system, concurrency, median| {
            let (work, backend, durability) = (Work::Scaling, Backend::Sqlite, Durability::Full);
            let case = Case { work, system, backend, durability, concurrency, size: 1 };
            let summary = Summary { median, min: median, max: median, rounds: 1 };
            Row::new(&case, "enqueue to end".into(), "flows/s".into(), summary)
        };
        let rows = [row(System::Ergon, 1, 500.0), row(System::Ergon, 256, 20_000.0), row(System::Raw, 1, 600.0)];
        let plots = draw(&rows).unwrap();
        let names: Vec<_> = plots.iter().map(|plot| plot.name.as_str()).collect();
        assert_eq!(names, ["scaling-sqlite"]);
        assert!(plots[0].svg.contains("ergon full") && plots[0].svg.contains("raw full"));
    }
}
