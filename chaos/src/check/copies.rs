//! The nodes at the end: equal content, one history of timelines, sound indexes and heaps, no checksum failures.

use super::case::Case;
use crate::record::Verdict;
use crate::workload::final_state::{Final, NodeFinal};
use std::collections::BTreeMap;

/// Every table has the same content on all nodes, and every timeline the same origin.
#[must_use]
pub fn copies(end: &Final) -> Verdict {
    let mut case = Case::new("copies");
    let read: Vec<&NodeFinal> = end.nodes.iter().filter(|node| node.trouble.is_none() && node.is_caught_up).collect();
    for node in &end.nodes {
        if let Some(trouble) = &node.trouble {
            case.lack(format!("{} {trouble}", node.name));
        } else if !node.is_caught_up {
            case.lack(format!("{} did not catch up", node.name));
        }
    }
    case.need("nodes", read.len(), 2);
    let primaries: Vec<&&NodeFinal> = read.iter().filter(|node| !node.in_recovery).collect();
    if primaries.len() > 1 {
        case.violate(vec![format!("{} nodes are writable at the end: {}", primaries.len(), names(&primaries))]);
    }
    let Some(model) = primaries.first().copied().or(read.first()).copied() else { return case.close("nothing was read".to_owned()) };
    for node in read.iter().filter(|node| node.name != model.name) {
        for (table, content) in &model.hashes {
            let other = node.hashes.get(table).map_or("nothing", String::as_str);
            if other != content {
                case.violate(vec![
                    format!("{table} differs between {} and {}", model.name, node.name),
                    format!("{}: {content}", model.name),
                    format!("{}: {other}", node.name),
                ]);
            }
        }
        if node.timeline.is_none() || model.timeline.is_none() {
            // A standby has no stream for a moment now and then.
            case.lack(format!("the timeline of {} or of {} was not seen", model.name, node.name));
        } else if node.timeline != model.timeline {
            case.violate(vec![format!("{} is on timeline {:?}, {} on {:?}", model.name, model.timeline, node.name, node.timeline)]);
        }
        timelines(model, node, &mut case);
    }
    case.count("tables", model.hashes.len());
    case.close(format!("{} nodes with {} equal tables on timeline {}", read.len(), model.hashes.len(), model.timeline.unwrap_or(0)))
}

fn names(nodes: &[&&NodeFinal]) -> String {
    nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The present timeline and its ancestors have one origin each, wherever a node has a file about them. Other files may stand for
/// promotions that were given up.
fn timelines(model: &NodeFinal, node: &NodeFinal, case: &mut Case) {
    let Some(current) = model.timeline else { return };
    let newest = model.timeline_files.get(&file_name(current)).map(|content| ancestors(content)).unwrap_or_default();
    for timeline in newest.keys().copied().chain([current]) {
        let name = file_name(timeline);
        let (Some(one), Some(other)) = (model.timeline_files.get(&name), node.timeline_files.get(&name)) else { continue };
        if ancestors(one) != ancestors(other) {
            case.violate(vec![
                format!("timeline {timeline} has two histories"),
                format!("{}: {}", model.name, one.trim().replace('\n', " | ")),
                format!("{}: {}", node.name, other.trim().replace('\n', " | ")),
            ]);
        }
    }
}

fn file_name(timeline: u32) -> String {
    format!("{timeline:08X}.history")
}

/// Ancestor timeline → where it was left.
fn ancestors(content: &str) -> BTreeMap<u32, String> {
    let lines = content.lines().filter(|line| !line.trim_start().starts_with('#'));
    let parsed = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
    });
    parsed.collect()
}

/// `pg_amcheck` found nothing on any node.
#[must_use]
pub fn amcheck(end: &Final) -> Verdict {
    let mut case = Case::new("amcheck");
    let mut clean = 0;
    for node in &end.nodes {
        match node.amcheck.as_ref().map(|run| (run.exit, &run.said)) {
            Some((Some(0), _)) => clean += 1,
            Some((Some(2), said)) => {
                let mut lines = vec![format!("pg_amcheck found corruption on {}", node.name)];
                lines.extend(said.lines().take(20).map(str::to_owned));
                case.violate(lines);
            }
            Some((_, said)) => case.lack(format!("pg_amcheck did not end on {}: {}", node.name, said.lines().next().unwrap_or_default())),
            None => case.lack(format!("pg_amcheck was not run on {}", node.name)),
        }
    }
    case.need("nodes", clean, 1);
    case.close(format!("pg_amcheck found nothing on {clean} nodes"))
}

/// No page failed its checksum on any node.
#[must_use]
pub fn checksums(end: &Final) -> Verdict {
    let mut case = Case::new("checksums");
    let mut sound = 0;
    for node in &end.nodes {
        if node.checksum_failures > 0 {
            case.violate(vec![format!("{} pages failed their checksum on {}", node.checksum_failures, node.name)]);
        } else if node.trouble.is_some() {
            case.lack(format!("{} could not be read", node.name));
        } else if node.has_checksums {
            sound += 1;
        } else {
            case.lack(format!("{} has no data checksums", node.name));
        }
    }
    case.need("nodes", sound, 1);
    case.close(format!("no failed checksum on {sound} nodes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::made::{assert_failed, assert_passed, nodes_with_set};
    use crate::record::Outcome;
    use crate::workload::final_state::ToolRun;

    fn equal() -> Final {
        let mut end = nodes_with_set(&[&[1], &[1], &[1]]);
        for node in &mut end.nodes {
            node.timeline = Some(3);
            node.hashes.insert("chaos_set".into(), "1 rows abc".into());
            node.timeline_files.insert("00000002.history".into(), "1\t0/3000000\tno recovery target specified\n".into());
            node.timeline_files.insert("00000003.history".into(), "1\t0/3000000\tx\n\n2\t0/5000000\ty\n".into());
            node.amcheck = Some(ToolRun { exit: Some(0), said: String::new() });
        }
        end
    }

    #[test]
    fn equal_nodes_pass() {
        let mut end = equal();
        // A file that stands for a promotion that was given up.
        end.nodes[1].timeline_files.insert("00000007.history".into(), "9\t0/9\tclaimed\n".into());
        assert_passed(&copies(&end));
        assert_passed(&amcheck(&end));
        assert_passed(&checksums(&end));
    }

    #[test]
    fn different_content_fails() {
        let mut end = equal();
        end.nodes[2].hashes.insert("chaos_set".into(), "2 rows abd".into());
        assert_failed(&copies(&end), "chaos_set differs between dc1 and dc3");
    }

    #[test]
    fn two_histories_of_one_timeline_fail() {
        let mut end = equal();
        end.nodes[1].timeline_files.insert("00000002.history".into(), "1\t0/3000ABC\tx\n".into());
        assert_failed(&copies(&end), "timeline 2 has two histories");
        let mut end = equal();
        end.nodes[1].timeline = Some(2);
        assert_failed(&copies(&end), "on timeline");
    }

    #[test]
    fn two_writable_nodes_fail() {
        let mut end = equal();
        end.nodes[1].in_recovery = false;
        assert_failed(&copies(&end), "2 nodes are writable");
    }

    #[test]
    fn corruption_and_failed_checksums_fail() {
        let mut end = equal();
        end.nodes[1].amcheck = Some(ToolRun { exit: Some(2), said: "heap table \"chaos_set\", block 3".into() });
        assert_failed(&amcheck(&end), "block 3");
        end.nodes[0].checksum_failures = 2;
        assert_failed(&checksums(&end), "2 pages");
    }

    #[test]
    fn what_was_not_read_is_not_passed() {
        let mut end = equal();
        end.nodes[1].trouble = Some("is down".into());
        end.nodes[1].amcheck = None;
        for verdict in [copies(&end), amcheck(&end), checksums(&end)] {
            assert_eq!(verdict.outcome, Outcome::Inconclusive, "{verdict:#?}");
        }
    }
}
