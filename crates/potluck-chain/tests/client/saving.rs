//! A session is put aside, and another begins with what its stages have kept.

use potluck_core::StateKey;
use potluck_wire::{Restore, Save};

use super::{
    repair::{kept, lost, stands_by},
    *,
};

const KEY: StateKey = StateKey([9; 32]);
const EARLIER: SessionId = SessionId::from_bytes([8; 16]);

fn saved(hop: usize, positions: u32) -> Event {
    Event::Frame { hop, frame: Frame::Saved { positions, bytes: 100 } }
}

fn restored(hop: usize, positions: u32) -> Event {
    Event::Frame { hop, frame: Frame::Restored { positions } }
}

/// A session that holds two positions, at rest.
fn answered() -> Test {
    let mut test = Test::remote();
    test.submit(0, 2).unwrap();
    test.drain();
    assert!(matches!(test.tell(Event::Frame { hop: 2, frame: Frame::Answer(good()) })[..], [Effect::Answer(_)]));
    test
}

fn all_saved(effects: &[Effect]) -> Option<(u32, u64)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Saved { positions, bytes } => Some((*positions, *bytes)),
        _ => None,
    })
}

fn all_restored(effects: &[Effect]) -> Option<u32> {
    effects.iter().find_map(|effect| match effect {
        Effect::Restored { positions } => Some(*positions),
        _ => None,
    })
}

#[test]
fn every_stage_keeps_what_it_holds_or_it_is_as_if_none_did() {
    let mut test = answered();
    test.session.save(test.now, KEY, 60).unwrap();
    let asked =
        |effect: &Effect| matches!(effect, Effect::Send { frame: Frame::Save(Save { key: KEY, seconds: 60 }), .. });
    assert_eq!(test.drain().iter().filter(|effect| asked(effect)).count(), 3);
    assert!(test.submit(2, 1).is_err(), "not before it is known");
    assert!(test.session.save(test.now, KEY, 60).is_err());
    assert_eq!([0, 1].map(|hop| all_saved(&test.tell(saved(hop, 2)))), [None; 2]);
    assert_eq!(all_saved(&test.tell(saved(2, 2))), Some((2, 300)));
    test.submit(2, 1).unwrap();
    assert!(test.session.save(test.now, KEY, 60).is_err(), "a step is under way");
    // One has no room.
    let mut test = answered();
    test.session.save(test.now, KEY, 60).unwrap();
    [0, 2].into_iter().for_each(|hop| drop(test.tell(saved(hop, 2))));
    assert_eq!(all_saved(&test.tell(saved(1, 0))).unwrap().0, 0);
    // One says nothing.
    let mut test = answered();
    test.session.save(test.now, KEY, 60).unwrap();
    test.drain();
    [0, 2].into_iter().for_each(|hop| drop(test.tell(saved(hop, 2))));
    test.now = test.session.poll_timeout().unwrap();
    assert_eq!(all_saved(&test.tell(Event::Timeout)).unwrap().0, 0);
    assert!(
        !test.session.is_over() && test.session.save(test.now, KEY, 60).is_err(),
        "which of the two would it answer?"
    );
    assert!(all_saved(&test.tell(saved(1, 2))).is_none(), "too late");
    test.session.save(test.now, KEY, 60).unwrap();
    test.drain();
    [0, 2].into_iter().for_each(|hop| drop(test.tell(saved(hop, 2))));
    assert_eq!(all_saved(&test.tell(saved(1, 2))), Some((2, 300)));
}

#[test]
fn a_session_ends_that_does_not_know_what_it_begins_with() {
    let restoring = || {
        let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
        test.session.restore(test.now, EARLIER, KEY).unwrap();
        test.drain();
        [0, 2].into_iter().for_each(|hop| drop(test.tell(restored(hop, 10))));
        test
    };
    // What comes too late would write over what was computed meanwhile.
    let mut test = restoring();
    test.now = test.session.poll_timeout().unwrap();
    assert!(matches!(test.error(Event::Timeout), SessionError::Deadline { setting: "step_timeout", .. }));
    // Nobody could be sent what the others begin with.
    let mut test = restoring();
    assert!(test.error(lost(0)).is_loss());
}

#[test]
fn nobody_stands_by_for_what_nobody_can_be_sent() {
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    stands_by(&mut test, 1, 5);
    test.session.restore(test.now, EARLIER, KEY).unwrap();
    let dropped = test.drain();
    assert!(dropped.iter().any(|effect| matches!(effect, Effect::StandbyLost { hop: 1, .. })), "{dropped:?}");
    let Hop::Remote(other) = remote(5, 3, 6) else { unreachable!() };
    assert!(test.session.stand_by(test.now, 1, other).is_err());
}

#[test]
fn whoever_takes_a_place_was_not_asked_to_keep_anything() {
    let mut test = kept(vec![remote(1, 0, 3), remote(2, 3, 6), remote(3, 6, 9)], &[]);
    let epoch = stands_by(&mut test, 1, 5);
    test.submit(0, 2).unwrap();
    test.drain();
    test.tell(Event::Frame { hop: 2, frame: Frame::Answer(answer(0, good().rows)) });
    test.tell(Event::Frame { hop: 0, frame: Frame::CaughtUp { epoch } });
    test.session.save(test.now, KEY, 60).unwrap();
    test.drain();
    let effects = test.tell(Event::Frame { hop: 1, frame: Frame::Leaving });
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Promoted { hop: 1 })), "{effects:?}");
    assert_eq!(all_saved(&effects).unwrap().0, 0);
    (0..3).for_each(|hop| drop(test.tell(Event::Frame { hop, frame: Frame::Ready })));
    assert!(test.session.save(test.now, KEY, 60).is_err(), "two have not answered");
    [0, 2].into_iter().for_each(|hop| drop(test.tell(saved(hop, 2))));
    test.session.save(test.now, KEY, 60).unwrap();
}

#[test]
fn a_session_begins_with_what_all_have_kept() {
    let mut test = Test::remote();
    test.session.restore(test.now, EARLIER, KEY).unwrap();
    let wanted = Frame::Restore(Restore { session: EARLIER, key: KEY });
    let asked = |effect: &&Effect| matches!(effect, Effect::Send { frame, .. } if *frame == wanted);
    assert_eq!(test.drain().iter().filter(asked).count(), 3);
    assert!(test.submit(0, 1).is_err());
    [1, 0].into_iter().for_each(|hop| drop(test.tell(restored(hop, 10))));
    assert_eq!(all_restored(&test.tell(restored(2, 10))), Some(10));
    assert_eq!(test.session.held(), 10);
    test.submit(10, 1).unwrap();
    // Of different ones none counts: all begin anew.
    let mut test = Test::remote();
    test.session.restore(test.now, EARLIER, KEY).unwrap();
    [1, 0].into_iter().for_each(|hop| drop(test.tell(restored(hop, 10))));
    assert_eq!(all_restored(&test.tell(restored(2, 9))), Some(0));
    assert!(test.submit(10, 1).is_err() && test.submit(0, 1).is_ok());
    assert!(test.session.restore(test.now, EARLIER, KEY).is_err(), "it has begun");
}

#[test]
fn own_stages_keep_theirs() {
    let mut test = Test::own_ends();
    test.session.restore(test.now, EARLIER, KEY).unwrap();
    let own = |effect: &Effect| {
        matches!(effect, Effect::Own { command: StageCommand::Restore { cache: CacheId(7), .. }, .. })
    };
    assert_eq!(test.drain().iter().filter(|effect| own(effect)).count(), 2);
    let reply = || StageReply::Restored { cache: CacheId(7), result: Ok(10) };
    test.tell(Event::Own { hop: 0, reply: reply() });
    test.tell(restored(1, 10));
    assert_eq!(all_restored(&test.tell(Event::Own { hop: 2, reply: reply() })), Some(10));
}

#[test]
fn a_peer_keeps_no_more_than_there_is() {
    let mut test = answered();
    test.session.save(test.now, KEY, 60).unwrap();
    test.drain();
    assert!(matches!(test.error(saved(1, 3)), SessionError::Protocol { .. }));
    let mut test = Test::remote();
    test.session.restore(test.now, EARLIER, KEY).unwrap();
    test.drain();
    assert!(matches!(test.error(restored(1, 33)), SessionError::Protocol { .. }));
}
