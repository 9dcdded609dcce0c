//! What a link promises, over many links and many packets.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// When a packet arrived, its number, and its bytes.
type Arrival = (Duration, usize, usize);

/// Pushes packets, each so long after the one before, in microseconds; all that arrive, and the fates.
fn through(link: &mut Link<usize>, packets: &[(u64, usize)]) -> (Vec<Arrival>, Vec<Fate>) {
    let (mut now, mut arrived, mut fates) = (Duration::ZERO, Vec::new(), Vec::new());
    let take = |link: &mut Link<usize>, until: Option<Duration>, arrived: &mut Vec<_>| {
        while let Some(at) = link.next().filter(|at| until.is_none_or(|until| *at <= until)) {
            let number = link.poll(at).unwrap();
            arrived.push((at, number, packets[number].1));
        }
    };
    for (number, &(after, bytes)) in packets.iter().enumerate() {
        now += Duration::from_micros(after);
        take(link, Some(now), &mut arrived);
        fates.push(link.push(now, number, bytes));
    }
    take(link, None, &mut arrived);
    (arrived, fates)
}

fn arrives(fate: &Fate) -> bool {
    matches!(fate, Fate::Arrives { .. })
}

/// Packets that arrived, in the order of their arrival.
fn numbers(arrived: &[Arrival]) -> Vec<usize> {
    arrived.iter().map(|(_, number, _)| *number).collect()
}

fn packets() -> impl Strategy<Value = Vec<(u64, usize)>> {
    prop::collection::vec((0..3_000_u64, 4..1_500_usize), 1..200)
}

fn profile() -> impl Strategy<Value = Profile> {
    let rate = prop::option::of(1_000..1_000_000_000_u64);
    let bursts = prop::option::of((0.0..0.2, 0.05..1.0, 0.2..1.0));
    let moves = (0..200_u32, 0..50_u32, 0..100_u32, 0.0..0.3, 0..50_u32);
    (moves, 0.0..0.5, bursts, rate, 4_000..100_000_usize).prop_map(|(moves, loss, bursts, rate, queue_bytes)| {
        let (delay, jitter, lasts, reorder, by) = moves;
        let bursts = bursts.map(|(begin, end, loss)| Bursts { begin, end, loss });
        let (delay, jitter, jitter_lasts, reorder_by) = (delay * MS, jitter * MS, lasts * MS, by * MS);
        Profile { delay, jitter, jitter_lasts, loss, bursts, reorder, reorder_by, rate, queue_bytes }
    })
}

proptest! {
    #[test]
    fn nothing_is_lost_where_there_is_room(packets in packets(), profile in profile(), seed: u64) {
        let profile = Profile { loss: 0.0, bursts: None, queue_bytes: FLIGHT_BYTES_MAX, ..profile };
        let (mut arrived, fates) = through(&mut Link::new(profile, seed), &packets);
        prop_assert!(fates.iter().all(arrives));
        arrived.sort_by_key(|(_, number, _)| *number);
        prop_assert_eq!(numbers(&arrived), (0..packets.len()).collect::<Vec<_>>());
    }

    #[test]
    fn a_packet_arrives_when_it_was_said_to(packets in packets(), profile in profile(), seed: u64) {
        let (arrived, fates) = through(&mut Link::new(profile, seed), &packets);
        prop_assert_eq!(arrived.len(), fates.iter().filter(|fate| arrives(fate)).count());
        for (at, number, _) in arrived {
            prop_assert_eq!(fates[number], Fate::Arrives { at });
        }
    }

    #[test]
    fn order_is_kept_by_any_jitter(packets in packets(), profile in profile(), seed: u64) {
        let profile = Profile { reorder: 0.0, ..profile };
        let (arrived, fates) = through(&mut Link::new(profile, seed), &packets);
        let sent: Vec<_> = (0..packets.len()).filter(|&number| arrives(&fates[number])).collect();
        prop_assert_eq!(numbers(&arrived), sent);
        prop_assert!(arrived.is_sorted());
    }

    #[test]
    fn jitter_stays_within_its_bound(packets in packets(), profile in profile(), seed: u64) {
        // Where packets are sent at once and none is held back, the moment of a push and the delay are all there is.
        let profile = Profile { rate: None, reorder: 0.0, ..profile };
        let (arrived, _) = through(&mut Link::new(profile, seed), &packets);
        let mut pushed = Duration::ZERO;
        let pushed: Vec<_> = packets.iter().map(|(after, _)| { pushed += Duration::from_micros(*after); pushed }).collect();
        for (at, number, _) in arrived {
            let late = at - pushed[number];
            prop_assert!(late + profile.jitter >= profile.delay && late <= profile.delay + profile.jitter, "{late:?}");
        }
    }

    #[test]
    fn the_rate_is_kept_to_the_byte(packets in packets(), rate in 1_000..1_000_000_000_u64, delay in 0..200_u32) {
        let profile = Profile { rate: Some(rate), delay: delay * MS, queue_bytes: FLIGHT_BYTES_MAX, ..Profile::default() };
        let (arrived, _) = through(&mut Link::new(profile, 1), &packets);
        // Whoever counts in fractions finds the same moments, to the nanosecond that they are rounded up to.
        let (mut pushed, mut free) = (0_u128, 0_u128);
        let rate = u128::from(rate);
        for ((after, bytes), (at, _, _)) in packets.iter().zip(arrived) {
            pushed += u128::from(*after) * 1_000;
            // In nanoseconds times the rate, which has no fractions.
            free = free.max(pushed * rate) + *bytes as u128 * 8 * SECOND;
            let at = (at - delay * MS).as_nanos() * rate;
            prop_assert!(at >= free && at - free < 2 * rate, "{at} {free}");
        }
    }

    #[test]
    fn a_queue_holds_what_it_says_and_no_more(packets in packets(), rate in 10_000..10_000_000_u64, room in 1_500..20_000_usize) {
        let profile = Profile { rate: Some(rate), queue_bytes: room, ..Profile::default() };
        let mut link = Link::new(profile, 1);
        let mut now = Duration::ZERO;
        for (after, bytes) in packets {
            now += Duration::from_micros(after);
            while link.poll(now).is_some() {}
            let before = link.waiting_bytes();
            let fits = before + bytes <= room;
            prop_assert_eq!(link.push(now, (), bytes) == Fate::NoRoom, !fits);
            prop_assert_eq!(link.waiting_bytes(), if fits { before + bytes } else { before });
        }
        // All of it is gone when it has arrived.
        while let Some(at) = link.next() {
            link.poll(at);
        }
        prop_assert_eq!(link.waiting_bytes(), 0);
    }

    #[test]
    fn the_same_seed_does_the_same(packets in packets(), profile in profile(), seed: u64) {
        let run = || through(&mut Link::new(profile, seed), &packets);
        prop_assert_eq!(run(), run());
    }
}

/// Whether each of so many packets is lost.
fn lost(profile: Profile, seed: u64, packets: usize) -> Vec<bool> {
    let (_, fates) = through(&mut Link::new(profile, seed), &vec![(10, 100); packets]);
    fates.into_iter().map(|fate| fate == Fate::Lost).collect()
}

#[test]
fn as_many_are_lost_as_it_says() {
    let lost = |loss, seed| lost(Profile { loss, ..Profile::default() }, seed, 10_000);
    for seed in 0..10 {
        let share = lost(0.03, seed).iter().filter(|lost| **lost).count();
        assert!((200..400).contains(&share), "{share} of 10000");
    }
    assert_ne!(lost(0.03, 1), lost(0.03, 2), "chance comes from the seed");
    assert!(lost(1.0, 1).iter().all(|lost| *lost));
}

#[test]
fn losses_come_in_bursts_of_their_length() {
    let bursts = |share, length| Profile { bursts: Some(Bursts::of(share, length)), ..Profile::default() };
    for (share, length) in [(0.02, 5.0), (0.1, 20.0), (0.01, 1.0)] {
        let profile = bursts(share, length);
        assert!((profile.mean_loss() - share).abs() < 1e-9, "{profile:?}");
        let lost = lost(profile, 5, 200_000);
        let count = lost.iter().filter(|lost| **lost).count() as f64;
        let begun = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count() as f64;
        assert!((count / 200_000.0 / share - 1.0).abs() < 0.15, "{count} lost instead of {share}");
        assert!((count / begun / length - 1.0).abs() < 0.15, "bursts of {} instead of {length}", count / begun);
    }
    // Both kinds together, where a burst loses but a part.
    let some = Bursts { begin: 0.01, end: 0.1, loss: 0.5 };
    let both = Profile { loss: 0.01, bursts: Some(some), ..Profile::default() };
    let count = lost(both, 9, 200_000).iter().filter(|lost| **lost).count() as f64;
    assert!((count / 200_000.0 / both.mean_loss() - 1.0).abs() < 0.15, "{count} lost, {} expected", both.mean_loss());
}

#[test]
fn a_share_is_held_back_and_overtaken() {
    let profile = Profile { delay: 20 * MS, reorder: 0.1, reorder_by: 5 * MS, ..Profile::default() };
    let (arrived, _) = through(&mut Link::new(profile, 3), &[(1_000, 100); 10_000]);
    let pushed = |number: usize| MS * (number as u32 + 1);
    let held: Vec<_> = arrived.iter().filter(|(at, number, _)| *at == pushed(*number) + 25 * MS).collect();
    assert!((800..1_200).contains(&held.len()), "{}", held.len());
    let others = arrived.iter().filter(|(at, number, _)| *at == pushed(*number) + 20 * MS).count();
    assert_eq!(others + held.len(), 10_000, "nobody else is late, and nobody early");
    let overtaken = numbers(&arrived).windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(overtaken > 700, "{overtaken}");
}

#[test]
fn jitter_follows_itself_for_as_long_as_it_lasts() {
    let delays = |lasts: u32| {
        let (delay, jitter, jitter_lasts) = (50 * MS, 10 * MS, lasts * MS);
        let profile = Profile { delay, jitter, jitter_lasts, ..Profile::default() };
        // So far apart that nobody would overtake.
        let (arrived, _) = through(&mut Link::new(profile, 7), &[(100_000, 100); 5_000]);
        let late = arrived.iter().map(|(at, number, _)| *at - 100 * MS * (*number as u32 + 1));
        let late: Vec<f64> = late.map(|late| late.as_secs_f64() * 1e3).collect();
        let mean = late.iter().sum::<f64>() / late.len() as f64;
        assert!((49.0..51.0).contains(&mean), "{mean}");
        let variance: f64 = late.iter().map(|ms| (ms - mean).powi(2)).sum();
        let deviation = (variance / late.len() as f64).sqrt();
        assert!((3.0..7.0).contains(&deviation), "it is not small where it is slow: {deviation}");
        late.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum::<f64>() / variance
    };
    assert!(delays(0).abs() < 0.1, "{}", delays(0));
    assert!(delays(70).abs() < 0.35, "{}", delays(70));
    assert!(delays(1_000) > 0.9, "{}", delays(1_000));
}

#[test]
fn many_packets_meet_the_delay_that_few_meet() {
    // Were each packet's jitter its own, a stream of them would always wait for the slowest one.
    let mean = |every: u64| {
        let profile = Profile { delay: 50 * MS, jitter: 10 * MS, jitter_lasts: 40 * MS, ..Profile::default() };
        let count = 20_000_000 / every as usize;
        let (arrived, _) = through(&mut Link::new(profile, 11), &vec![(every, 100); count]);
        let late = arrived.iter().map(|(at, number, _)| at.as_secs_f64() - every as f64 * 1e-6 * (number + 1) as f64);
        late.sum::<f64>() / count as f64 * 1e3
    };
    let (few, many) = (mean(20_000), mean(100));
    assert!((few - 50.0).abs() < 1.0 && (many - 50.0).abs() < 1.0, "{few} {many}");
}

#[test]
fn a_lost_packet_takes_its_time_to_send() {
    let profile = Profile { rate: Some(8_000), loss: 1.0, ..Profile::default() };
    let mut link = Link::new(profile, 1);
    assert_eq!(link.push(Duration::ZERO, (), 100), Fate::Lost);
    assert_eq!((link.waiting_bytes(), link.next()), (100, None));
    assert_eq!(link.poll(100 * MS), None);
    assert_eq!(link.waiting_bytes(), 0);
}
