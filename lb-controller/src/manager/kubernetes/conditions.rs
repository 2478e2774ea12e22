//! Conditions of our own objects. Pure: the time of the last transition moves only when a condition turns.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Whether something is so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holds {
    Yes,
    No,
}

impl Holds {
    fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "True",
            Self::No => "False",
        }
    }
}

/// What a condition says.
pub(super) struct Said {
    /// Its type.
    pub(super) kind: &'static str,
    pub(super) holds: Holds,
    /// Why, in one word.
    pub(super) reason: &'static str,
    /// Why, in a sentence.
    pub(super) message: String,
}

/// The condition, as it goes on from those of before.
pub(super) fn condition(
    said: Said,
    before: &[Condition],
    generation: Option<i64>,
    wall: Timestamp,
) -> Condition {
    let Said {
        kind,
        holds,
        reason,
        message,
    } = said;
    let status = holds.as_str();
    let mut held = before.iter();
    let held = held.find(|old| old.type_ == kind && old.status == status);
    // The API server keeps seconds.
    let now = || Time(Timestamp::from_second(wall.as_second()).unwrap_or(wall));
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: held.map_or_else(now, |old| old.last_transition_time.clone()),
        observed_generation: generation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(before: &[Condition], holds: Holds, reason: &'static str, ms: i64) -> Condition {
        let said = Said {
            kind: "Ready",
            holds,
            reason,
            message: String::new(),
        };
        let wall = Timestamp::from_millisecond(ms).unwrap();
        condition(said, before, Some(1), wall)
    }

    fn second(condition: &Condition) -> i64 {
        condition.last_transition_time.0.as_second()
    }

    #[test]
    fn the_time_moves_when_a_condition_turns_and_not_with_its_reason() {
        let first = at(&[], Holds::No, "PoolNotFound", 10_400);
        let second_reason = at(std::slice::from_ref(&first), Holds::No, "NoNode", 20_000);
        let turned = at(
            std::slice::from_ref(&second_reason),
            Holds::Yes,
            "AllFound",
            30_000,
        );
        let times = [&first, &second_reason, &turned].map(second);
        assert_eq!(times, [10, 10, 30]);
        assert_eq!(second_reason.reason, "NoNode");
    }

    #[test]
    fn a_condition_of_another_type_lends_no_time() {
        let other = Condition {
            type_: "Shrunk".to_owned(),
            ..at(&[], Holds::No, "AllInPools", 10_000)
        };
        assert_eq!(second(&at(&[other], Holds::No, "NoNode", 20_000)), 20);
    }
}
