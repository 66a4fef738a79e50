//! Orders of an administrator: `trilithon …` in a datacenter, at once or in the background, and what came of them.

use super::aim::Target;
use super::injected::Injected;
use anyhow::{Context as _, Result};
use std::process::Output;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A switchover may take its whole timeout of 20 s, and a copy longer; nobody waits for the latter.
const ORDER_LIMIT: Duration = Duration::from_secs(45);

/// How the words of an order begin that was carried out.
const DONE: &str = "done: ";
/// How the words of an order begin that was answered and not carried out; the code follows.
const REFUSED: &str = "exit ";

/// An order that was given and whose outcome may still be open.
#[derive(Clone)]
pub struct Order {
    words: String,
    outcome: Arc<Mutex<Option<String>>>,
}

impl Order {
    /// "`switchover --to dc2`: done: …"; `None` while it is open.
    pub fn outcome(&self) -> Option<String> {
        self.beginning("")
    }

    /// [`Order::outcome`], where it was carried out.
    pub fn done(&self) -> Option<String> {
        self.beginning(DONE)
    }

    /// [`Order::outcome`], where it was answered and not carried out; who never answered has refused nothing.
    pub fn refusal(&self) -> Option<String> {
        self.beginning(REFUSED)
    }

    fn beginning(&self, with: &str) -> Option<String> {
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.as_ref().filter(|outcome| outcome.starts_with(with)).map(|outcome| format!("`{}`: {outcome}", self.words))
    }
}

/// Give an order in the target's datacenter, without waiting for its outcome.
///
/// # Errors
/// There is no such command line, or the machine has no thread left.
pub fn give<'a>(i: &mut Injected<'a>, target: Target<'a>, words: &[&str]) -> Result<Order> {
    let (cluster, command) = (i.ctx.cluster.clone(), i.ctx.cluster.system().cli(target.site, words)?);
    let order = Order { words: words.join(" "), outcome: Arc::default() };
    let (words, outcome) = (owned(words), Arc::clone(&order.outcome));
    let thread = std::thread::Builder::new().name("chaos-order".to_owned()).spawn(move || {
        let said = cluster.order(command, &words, ORDER_LIMIT);
        let words = said.map_or_else(|error| format!("no outcome: {error:#}"), |output| in_words(&output));
        *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
    });
    let thread = thread.context("no thread for an order")?;
    i.afterwards(format!("the outcome of `{}`", order.words), move || thread.join().map_err(|_| anyhow::anyhow!("its thread panicked")));
    Ok(order)
}

/// Give orders one after the other in the background until the fault heals; their outcomes do not matter.
///
/// # Errors
/// As of [`give`].
pub fn series<'a>(i: &mut Injected<'a>, target: Target<'a>, all: &[&[&str]]) -> Result<()> {
    let cluster = i.ctx.cluster.clone();
    let command = |words: &&[&str]| Ok((cluster.system().cli(target.site, words)?, owned(words)));
    let mut commands = all.iter().map(command).collect::<Result<Vec<_>>>()?.into_iter();
    let toil = super::toil::Toil::begin("chaos-orders", move |rest| match commands.next() {
        Some((command, words)) => drop(cluster.order(command, &words, ORDER_LIMIT)),
        None => rest.sleep(Duration::from_secs(1)),
    })?;
    i.undo("the last of the orders", move || toil.end());
    Ok(())
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Exit code and the last line of what it said.
pub fn in_words(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = super::evidence::plain(&String::from_utf8_lossy(&text));
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
    match output.status.code() {
        Some(0) => format!("{DONE}{last}"),
        Some(code) => format!("{REFUSED}{code}: {last}"),
        None => format!("{}: {last}", output.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    #[test]
    fn only_who_answers_has_done_it_or_refused() {
        let said =
            |status: i32| in_words(&Output { status: ExitStatus::from_raw(status), stdout: b"it says\n".to_vec(), stderr: Vec::new() });
        let order = |outcome: Option<String>| Order { words: "switchover".to_owned(), outcome: Arc::new(Mutex::new(outcome)) };
        assert_eq!(order(Some(said(3 << 8))).refusal().as_deref(), Some("`switchover`: exit 3: it says"));
        assert_eq!(order(Some(said(0))).done().as_deref(), Some("`switchover`: done: it says"));
        assert_eq!(order(Some(said(3 << 8))).done(), None);
        for outcome in [None, Some(said(0)), Some(said(9)), Some("no outcome: no end within 45 s".to_owned())] {
            assert_eq!(order(outcome.clone()).refusal(), None, "{outcome:?}");
        }
    }
}
