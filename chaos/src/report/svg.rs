//! The few shapes that the pictures are made of. Colours come from classes of `colours.css` and `chart.css`, so that one picture
//! serves light and dark; texts are escaped here.

use super::text::escape;

/// Place and size in pixels.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    pub x: f64,
    pub y: f64,
    pub w: f64,
    pub h: f64,
}

impl Area {
    pub fn bottom(&self) -> f64 {
        self.y + self.h
    }

    pub fn right(&self) -> f64 {
        self.x + self.w
    }
}

/// A coordinate with one decimal at most: pictures of long runs stay small.
pub fn n(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

pub fn text(x: f64, y: f64, class: &str, content: &str) -> String {
    format!("<text x=\"{}\" y=\"{}\" class=\"{class}\">{}</text>\n", n(x), n(y), escape(content))
}

/// A rectangle; an empty `title` leaves the pointer's hint out.
pub fn rect(area: Area, class: &str, title: &str) -> String {
    let Area { x, y, w, h } = area;
    let place = format!("x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" class=\"{class}\"", n(x), n(y), n(w.max(0.0)), n(h.max(0.0)));
    if title.is_empty() { format!("<rect {place}/>\n") } else { format!("<rect {place}><title>{}</title></rect>\n", escape(title)) }
}

pub fn line(from: (f64, f64), to: (f64, f64), class: &str) -> String {
    format!("<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" class=\"{class}\"/>\n", n(from.0), n(from.1), n(to.0), n(to.1))
}

pub fn dot(x: f64, y: f64, radius: f64, class: &str, title: &str) -> String {
    let title = escape(title);
    format!("<circle cx=\"{}\" cy=\"{}\" r=\"{}\" class=\"{class}\"><title>{title}</title></circle>\n", n(x), n(y), n(radius))
}

/// A path; an empty one is left out.
pub fn path(data: &str, class: &str) -> String {
    if data.is_empty() { String::new() } else { format!("<path d=\"{data}\" class=\"{class}\"/>\n") }
}

/// A whole picture. `label` is what a screen reader says.
pub fn picture(width: f64, height: f64, label: &str, content: &str) -> String {
    let (width, height, label) = (n(width), n(height), escape(label));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\" aria-label=\"{label}\">\n{HATCHES}{content}</svg>\n"
    )
}

/// Fills for what did not take hold and for outages: they differ by more than their colour.
const HATCHES: &str = r#"<defs>
<pattern id="hatch-outage" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect width="6" height="6" class="outage-ground"/><line x1="0" y1="0" x2="0" y2="6" class="outage-stroke"/></pattern>
<pattern id="hatch-missed" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(-45)">
<line x1="0" y1="0" x2="0" y2="5" class="missed-stroke"/></pattern>
</defs>
"#;

/// Coloured squares with names in lines `across`, the first at `y`, and where they end; the second part of an entry is a class.
pub fn legend(across: (f64, f64), mut y: f64, entries: &[(String, String)]) -> (String, f64) {
    let mut left = across.0;
    let mut drawn = String::new();
    for (name, class) in entries {
        if left > across.0 && left + 15.0 + text_width(name) > across.1 {
            (left, y) = (across.0, y + 17.0);
        }
        drawn += &rect(Area { x: left, y: y - 9.0, w: 10.0, h: 10.0 }, class, "");
        drawn += &text(left + 15.0, y, "label", name);
        left += 15.0 + text_width(name) + 18.0;
    }
    (drawn, y + 8.0)
}

/// About how wide `text` is drawn in the labels' size (11 px); a little generous, so that labels do not touch.
pub fn text_width(text: &str) -> f64 {
    text.chars().count() as f64 * 6.3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_in_shapes_are_escaped() {
        let area = Area { x: 1.0, y: 2.25, w: -3.0, h: 4.0 };
        let drawn = rect(area, "c", "<&>");
        assert_eq!(drawn, "<rect x=\"1\" y=\"2.2\" width=\"0\" height=\"4\" class=\"c\"><title>&lt;&amp;&gt;</title></rect>\n");
        assert!(text(0.0, 0.0, "c", "</svg>").contains("&lt;/svg&gt;"));
        assert!(picture(1.0, 1.0, "\"", "").contains("aria-label=\"&quot;\""));
    }
}
