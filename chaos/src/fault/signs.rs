//! What is looked for while a fault is in force: each sign is looked for until it was seen, and then remembered.

/// One sign.
struct Sign<'a> {
    what: String,
    look: Box<dyn FnMut() -> Option<String> + 'a>,
    seen: Option<String>,
}

/// Signs that all must be seen.
#[derive(Default)]
pub struct Signs<'a>(Vec<Sign<'a>>);

impl<'a> Signs<'a> {
    /// `look` is called until it says something.
    pub fn add(&mut self, what: impl Into<String>, look: impl FnMut() -> Option<String> + 'a) {
        self.0.push(Sign { what: what.into(), look: Box::new(look), seen: None });
    }

    /// What was seen already.
    pub fn add_seen(&mut self, seen: impl Into<String>) {
        let seen = seen.into();
        self.0.push(Sign { what: seen.clone(), look: Box::new(|| None), seen: Some(seen) });
    }

    /// Those of another, which is named before each.
    pub fn add_all(&mut self, whose: &str, others: Signs<'a>) {
        self.0.extend(others.0.into_iter().map(|sign| Sign { what: format!("{whose}: {}", sign.what), ..sign }));
    }

    /// Look anew for whatever was not seen yet.
    pub fn look(&mut self) {
        for sign in self.0.iter_mut().filter(|sign| sign.seen.is_none()) {
            sign.seen = (sign.look)();
        }
    }

    /// What all of them showed; `None`: one is missing, or there are none.
    pub fn seen(&self) -> Option<String> {
        let seen: Option<Vec<&str>> = self.0.iter().map(|sign| sign.seen.as_deref()).collect();
        seen.filter(|seen| !seen.is_empty()).map(|seen| seen.join("; "))
    }

    /// What those showed that were seen; `None`: none was.
    pub fn any(&self) -> Option<String> {
        let seen: Vec<&str> = self.0.iter().filter_map(|sign| sign.seen.as_deref()).collect();
        (!seen.is_empty()).then(|| seen.join("; "))
    }

    /// What was not seen so far.
    pub fn unseen(&self) -> Vec<&str> {
        self.0.iter().filter(|sign| sign.seen.is_none()).map(|sign| sign.what.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_sign_is_looked_for_until_it_was_seen_and_then_remembered() {
        let looks = Cell::new(0);
        let mut signs = Signs::default();
        signs.add("the third look", || {
            looks.set(looks.get() + 1);
            (looks.get() == 3).then(|| "three".to_owned())
        });
        signs.add_seen("one at once");
        for _ in 0..2 {
            signs.look();
            assert_eq!((signs.seen(), signs.unseen()), (None, vec!["the third look"]));
            assert_eq!(signs.any().as_deref(), Some("one at once"));
        }
        signs.look();
        signs.look();
        assert_eq!((signs.seen().as_deref(), looks.get()), (Some("three; one at once"), 3));
        assert!(signs.unseen().is_empty());
    }

    #[test]
    fn without_any_sign_nothing_was_seen() {
        assert_eq!((Signs::default().seen(), Signs::default().any()), (None, None));
    }

    #[test]
    fn those_of_another_are_named_after_it_and_looked_for_too() {
        let there = Cell::new(false);
        let (mut signs, mut others) = (Signs::default(), Signs::default());
        others.add("an answer", || there.get().then(|| "yes".to_owned()));
        signs.add_all("terminate-node", others);
        signs.look();
        assert_eq!(signs.unseen(), ["terminate-node: an answer"]);
        there.set(true);
        signs.look();
        assert!(signs.unseen().is_empty());
    }
}
