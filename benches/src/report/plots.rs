//! Plots, as SVG: speed and error over the sequence length, a panel for each head_dim and mask, and a roofline.

use std::ops::Range;

use flashtile::DType;
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{Report, Row, State, summary};
use crate::cell::{Cell, Group};

/// Size of a panel.
const PANEL: (u32, u32) = (520, 340);

/// Room for the title above the panels.
const TITLE: u32 = 40;

/// A colour for each implementation, in the order in which they appear; they differ for the colour-blind too
/// (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(204, 121, 167),
    RGBColor(240, 228, 66),
];

type Drawn<T> = Result<T, Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// What a plot shows of a row, over its sequence length.
#[derive(Clone, Copy)]
enum Quantity {
    /// TFLOP/s.
    Speed,
    /// Microseconds, where there is no GPU.
    Time,
    /// Largest error, and, dashed, their root mean square.
    Error,
}

/// A number of a row, if it has it.
type Value = fn(&Row) -> Option<f64>;

/// Points of one implementation: length, value.
struct Line {
    name: String,
    dashed: bool,
    points: Vec<(f64, f64)>,
}

impl Report {
    /// File names and contents.
    ///
    /// # Errors
    /// What cannot be drawn.
    pub fn plots(&self) -> Result<Vec<(String, String)>, String> {
        let on_gpu = self.machine.kind == "cuda";
        let (speed, name) = match on_gpu {
            true => (Quantity::Speed, "speed"),
            false => (Quantity::Time, "time"),
        };
        let mut plots = Vec::new();
        for dtype in self.dtypes() {
            for group in self.groups(dtype) {
                for (quantity, name) in [(speed, name), (Quantity::Error, "error")] {
                    let text = self.panels(quantity, dtype, group);
                    let text = text.map_err(|error| format!("{name}: {error}"))?;
                    plots.push((format!("{name}-{}-{group}.svg", dtype.as_str()), text));
                }
            }
            if on_gpu {
                let text = self.roofline(dtype);
                let text = text.map_err(|error| format!("roofline: {error}"))?;
                plots.push((format!("roofline-{}.svg", dtype.as_str()), text));
            }
        }
        Ok(plots)
    }

    fn groups(&self, dtype: DType) -> Vec<Group> {
        let cells = self.cells().into_iter();
        let groups = cells
            .filter(|cell| cell.dtype == dtype)
            .map(|cell| cell.group());
        summary::distinct(groups)
    }

    fn implementations(&self) -> Vec<String> {
        summary::distinct(self.rows.iter().map(|row| row.implementation.clone()))
    }

    fn colour(&self, implementation: &str) -> RGBColor {
        let names = self.implementations();
        let at = names.iter().position(|name| name == implementation);
        COLOURS[at.unwrap_or(0) % COLOURS.len()]
    }

    fn where_and_when(&self) -> String {
        format!(
            "{}, {}, flashtile {}",
            self.machine.name, self.date, self.flashtile
        )
    }

    /// A panel for each head_dim (down) and mask (across).
    fn panels(&self, quantity: Quantity, dtype: DType, group: Group) -> Drawn<String> {
        let shown = |cell: &Cell| cell.dtype == dtype && cell.group() == group;
        let cells: Vec<_> = self.cells().into_iter().filter(shown).collect();
        let mut head_dims = summary::distinct(cells.iter().map(Cell::head_dim));
        head_dims.sort_unstable();
        let masks = summary::distinct(cells.iter().map(summary::mask));
        let size = (
            PANEL.0 * masks.len().max(1) as u32,
            TITLE + PANEL.1 * head_dims.len().max(1) as u32,
        );
        let what = match quantity {
            Quantity::Speed => "TFLOP/s",
            Quantity::Time => "microseconds by the clock on the wall",
            Quantity::Error => "largest error (dashed: root mean square)",
        };
        let heading = format!(
            "{what}, {} {group}: {}",
            dtype.as_str(),
            self.where_and_when()
        );
        drawing(size, &heading, |area| {
            let areas = area.split_evenly((head_dims.len(), masks.len()));
            for (row, &head_dim) in head_dims.iter().enumerate() {
                for (column, mask) in masks.iter().enumerate() {
                    let in_panel = |r: &&Row| {
                        shown(&r.cell)
                            && r.cell.head_dim() == head_dim
                            && summary::mask(&r.cell) == *mask
                    };
                    let rows: Vec<_> = self.rows.iter().filter(in_panel).collect();
                    let caption = format!("head_dim {head_dim}, {mask}");
                    let area = &areas[row * masks.len() + column];
                    self.panel(area, quantity, &caption, &rows)?;
                }
            }
            Ok(())
        })
    }

    fn panel(
        &self,
        area: &Area<'_>,
        quantity: Quantity,
        caption: &str,
        rows: &[&Row],
    ) -> Drawn<()> {
        let lines = self.lines(quantity, rows);
        let points = || lines.iter().flat_map(|line| line.points.iter());
        let (x, y) = (points().map(|p| p.0), points().map(|p| p.1));
        let (Some(x), Some(y)) = (reach(x), reach(y)) else {
            return label(area, &format!("{caption}: nothing was measured"));
        };
        // One length alone would have no width.
        let x = x.start - 0.25..x.end + 0.25;
        let mut builder = ChartBuilder::on(area);
        builder
            .caption(caption, ("sans-serif", 15))
            .margin(10)
            .x_label_area_size(32)
            .y_label_area_size(60);
        // Lengths are powers of two mostly: they are drawn by their logarithm.
        let name = |x: &f64| match (x - x.round()).abs() < 1e-6 {
            true => summary::length(x.exp2().round() as usize),
            false => String::new(),
        };
        let ticks = (x.end - x.start).floor() as usize + 1;
        match quantity {
            Quantity::Speed => {
                let mut chart = builder.build_cartesian_2d(x, 0.0..y.end * 1.05)?;
                let mut mesh = chart.configure_mesh();
                mesh.x_labels(ticks).x_label_formatter(&name);
                mesh.y_label_formatter(&plain);
                mesh.light_line_style(TRANSPARENT)
                    .x_desc("sequence length")
                    .draw()?;
                self.draw(&mut chart, lines, SeriesLabelPosition::LowerRight)
            }
            Quantity::Time | Quantity::Error => {
                let y = decades(&y).log_scale();
                let mut chart = builder.build_cartesian_2d(x, y)?;
                let mut mesh = chart.configure_mesh();
                mesh.x_labels(ticks).x_label_formatter(&name);
                mesh.y_label_formatter(&plain);
                mesh.light_line_style(TRANSPARENT)
                    .x_desc("sequence length")
                    .draw()?;
                self.draw(&mut chart, lines, SeriesLabelPosition::UpperRight)
            }
        }
    }

    fn lines(&self, quantity: Quantity, rows: &[&Row]) -> Vec<Line> {
        let values: &[(bool, Value)] = match quantity {
            Quantity::Speed => &[(false, |row| row.tflops)],
            Quantity::Time => &[(false, |row| row.median_us)],
            Quantity::Error => &[
                (false, |row| row.max_abs_error),
                (true, |row| row.rms_error),
            ],
        };
        let mut lines = Vec::new();
        for name in self.implementations() {
            for &(dashed, value) in values {
                let of = |row: &&&Row| row.implementation == name;
                let point = |row: &&Row| {
                    // An error of 0 has no logarithm, an infinite one no place.
                    let value = value(row).filter(|&y| y > 0.0 && y.is_finite())?;
                    Some(((row.seqlen_k as f64).log2(), value))
                };
                let mut points: Vec<_> = rows.iter().filter(of).filter_map(point).collect();
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                if !points.is_empty() {
                    lines.push(Line {
                        name: name.clone(),
                        dashed,
                        points,
                    });
                }
            }
        }
        lines
    }

    fn draw<'a, Y>(
        &self,
        chart: &mut ChartContext<
            'a,
            SVGBackend<'a>,
            Cartesian2d<plotters::coord::types::RangedCoordf64, Y>,
        >,
        lines: Vec<Line>,
        names: SeriesLabelPosition,
    ) -> Drawn<()>
    where
        Y: Ranged<ValueType = f64>,
    {
        // The first is ours: it lies on top.
        for line in lines.into_iter().rev() {
            let colour = self.colour(&line.name);
            let style = colour.stroke_width(2);
            if line.dashed {
                let dashes = DashedLineSeries::new(line.points, 6, 4, colour.stroke_width(1));
                chart.draw_series(dashes)?;
                continue;
            }
            let marks = line
                .points
                .iter()
                .map(|&at| Circle::new(at, 3, colour.filled()));
            chart.draw_series(marks)?;
            let series = chart.draw_series(LineSeries::new(line.points, style))?;
            series
                .label(line.name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
        }
        legend(chart, names)
    }

    /// Speed over the operations that a byte carries, below what the machine can do.
    fn roofline(&self, dtype: DType) -> Drawn<String> {
        let measured = |row: &&Row| row.cell.dtype == dtype && row.state == State::Ok;
        let rows: Vec<_> = self.rows.iter().filter(measured).collect();
        let points: Vec<_> = rows
            .iter()
            .filter_map(|row| Some((row.flop_per_byte, row.tflops?, row.implementation.as_str())))
            .filter(|point| point.0 > 0.0 && point.1 > 0.0)
            .collect();
        let peak = self.peak_tflops.get(dtype.as_str()).copied();
        let bandwidth = self.copy_bytes_per_second.map(|bytes| bytes / 1e12);
        let mut heading = format!("Roofline, {}: {}", dtype.as_str(), self.where_and_when());
        if let Some(peak) = peak {
            heading += &format!("; torch.matmul {peak:.0} TFLOP/s");
        }
        if let Some(bandwidth) = bandwidth {
            heading += &format!("; copies {bandwidth:.2} TB/s");
        }
        let size = (2 * PANEL.0, TITLE + 3 * PANEL.1 / 2);
        drawing(size, &heading, |area| {
            let x = reach(points.iter().map(|point| point.0));
            let y = reach(points.iter().map(|point| point.1).chain(peak));
            let (Some(x), Some(y)) = (x, y) else {
                return label(area, "nothing was measured");
            };
            let (x, y) = (decades(&x), decades(&y));
            let mut chart = ChartBuilder::on(area)
                .margin(10)
                .margin_right(24)
                .x_label_area_size(36)
                .y_label_area_size(60)
                .build_cartesian_2d(x.clone().log_scale(), y.clone().log_scale())?;
            let mut mesh = chart.configure_mesh();
            mesh.light_line_style(TRANSPARENT);
            mesh.x_label_formatter(&plain).y_label_formatter(&plain);
            mesh.x_desc("FLOP to a byte that must move")
                .y_desc("TFLOP/s")
                .draw()?;
            let roof = roof(&x, &y, peak, bandwidth);
            chart.draw_series(LineSeries::new(roof, BLACK.mix(0.5).stroke_width(2)))?;
            for name in self.implementations().into_iter().rev() {
                let colour = self.colour(&name);
                let of = points.iter().filter(|point| point.2 == name);
                let marks = of.map(|point| Circle::new((point.0, point.1), 3, colour.filled()));
                let marks: Vec<_> = marks.collect();
                if !marks.is_empty() {
                    let series = chart.draw_series(marks)?;
                    let mark = move |(x, y)| Circle::new((x + 8, y), 3, colour.filled());
                    series.label(name).legend(mark);
                }
            }
            legend(&mut chart, SeriesLabelPosition::LowerRight)
        })
    }
}

/// The limits within the plot: as many operations a second as the bytes bring, and no more than the peak.
fn roof(
    x: &Range<f64>,
    y: &Range<f64>,
    peak: Option<f64>,
    bandwidth: Option<f64>,
) -> Vec<(f64, f64)> {
    let peak = peak.unwrap_or(f64::INFINITY);
    let Some(bandwidth) = bandwidth.filter(|&bandwidth| bandwidth > 0.0) else {
        return match peak.is_finite() {
            true => vec![(x.start, peak), (x.end, peak)],
            false => Vec::new(),
        };
    };
    let top = peak.min(y.end);
    let limit = |x: f64| (x * bandwidth).min(peak);
    // Where the slope enters the plot from below, and where it meets the peak or leaves the plot.
    let enters = (y.start / bandwidth).max(x.start);
    let bends = top / bandwidth;
    let mut roof: Vec<f64> = vec![enters];
    if bends > enters && bends < x.end {
        roof.push(bends);
    }
    if limit(x.end) <= y.end {
        roof.push(x.end);
    }
    let inside = |x: &f64| limit(*x) >= y.start * 0.999 && limit(*x) <= y.end * 1.001;
    let inside = roof.into_iter().filter(inside);
    inside.map(|x| (x, limit(x))).collect()
}

/// The least and the largest number.
fn reach(numbers: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    numbers.fold(None, |reach, x| match reach {
        None => Some(x..x),
        Some(reach) => Some(reach.start.min(x)..reach.end.max(x)),
    })
}

/// From a power of ten to a power of ten.
fn decades(reach: &Range<f64>) -> Range<f64> {
    let start = reach.start.log10().floor();
    let end = reach.end.log10().ceil().max(start + 1.0);
    10f64.powf(start)..10f64.powf(end)
}

/// A number on an axis.
fn plain(x: &f64) -> String {
    match x.abs() {
        0.0 | 0.1..1e5 => format!("{}", (x * 1e3).round() / 1e3),
        _ => format!("{x:.0e}"),
    }
}

/// An SVG drawing with a heading.
fn drawing(
    size: (u32, u32),
    heading: &str,
    draw: impl FnOnce(&Area<'_>) -> Drawn<()>,
) -> Drawn<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE)?;
        let style = ("sans-serif", 16).into_text_style(&root);
        root.draw_text(heading, &style, (14, 12))?;
        let (_, below) = root.split_vertically(TITLE);
        draw(&below)?;
        root.present()?;
    }
    Ok(text)
}

/// Text in place of a panel.
fn label(area: &Area<'_>, text: &str) -> Drawn<()> {
    let style = ("sans-serif", 15).into_text_style(area);
    let style = style.pos(Pos::new(HPos::Left, VPos::Top));
    Ok(area.draw_text(text, &style, (60, 20))?)
}

fn legend<'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
    position: SeriesLabelPosition,
) -> Drawn<()>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .label_font(("sans-serif", 12))
        .draw()?;
    Ok(())
}
