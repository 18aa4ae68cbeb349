//! Times as BIRD prints them: in its own time zone, so only differences between two of its own are of use.
//!
//! `show status` tells the time now; a protocol's `since` is a time of the last day, or only a date once it is older than that
//! (`timeformat protocol`, by default 20 hours).

use std::time::Duration;

const DAY: i64 = 24 * 3600 * 1000;
/// From this age on, BIRD prints dates only.
const DATES_FROM: i64 = 20 * 3600 * 1000;

/// A time in BIRD's time zone, in milliseconds since 1970 began there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i64);

/// Since when something is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Since this moment.
    At(Moment),
    /// Since some time of the day that began at this moment.
    On(Moment),
}

/// Clocks are set: what differs by no more is the same.
const SAME: i64 = 2000;

impl Moment {
    /// Reads `2026-08-20 13:05:44`, with or without parts of a second.
    pub fn parse(text: &str) -> Option<Self> {
        let (date, time) = text.trim().split_once(' ')?;
        Some(Self(self::date(date)? + self::time(time.trim())?))
    }

    fn day(self) -> i64 {
        self.0.div_euclid(DAY) * DAY
    }
}

impl Since {
    /// Reads the column `since`, as it was printed at `now`.
    pub fn parse(text: &str, now: Moment) -> Option<Self> {
        if let Some(moment) = Moment::parse(text) {
            return Some(Self::At(moment));
        }
        match (time(text), date(text)) {
            (Some(time), _) => {
                let today = now.day() + time;
                let day = if today > now.0 + SAME { DAY } else { 0 };
                Some(Self::At(Moment(today - day)))
            }
            (_, Some(date)) => Some(Self::On(Moment(date))),
            (None, None) => None,
        }
    }

    /// How long ago it was, at least.
    pub fn age(self, now: Moment) -> Duration {
        let age = match self {
            Self::At(moment) => now.0 - moment.0,
            Self::On(day) => (now.0 - day.0 - DAY).max(DATES_FROM),
        };
        Duration::from_millis(u64::try_from(age).unwrap_or(0))
    }

    /// What both say, if they can be the same time; of two, the more exact.
    pub fn agreed(self, later: Self) -> Option<Self> {
        match (self, later) {
            (Self::At(a), Self::At(b)) => (a.0.abs_diff(b.0) <= SAME.unsigned_abs()).then_some(later),
            (Self::At(at), Self::On(day)) => (at.day() == day.0).then_some(self),
            (Self::On(day), Self::At(at)) => (at.day() == day.0).then_some(later),
            (Self::On(a), Self::On(b)) => (a == b).then_some(later),
        }
    }
}

/// `2026-08-20`, as the milliseconds from 1970 to its beginning.
fn date(text: &str) -> Option<i64> {
    let mut parts = text.split('-').map(number);
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some()
        || !(1970..=9999).contains(&year)
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
    {
        return None;
    }
    // Years that begin in March: the leap day is their last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    const UP_TO_1970: i64 = 719_468;
    Some((days - UP_TO_1970) * DAY)
}

/// `13:05:44` or `13:05:44.120`, as milliseconds.
fn time(text: &str) -> Option<i64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let mut parts = whole.split(':').map(number);
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let milliseconds = number(part.get(..3).unwrap_or(part))?;
    let scale = [0, 100, 10, 1][part.len().min(3)];
    Some(((hour * 60 + minute) * 60 + second) * 1000 + milliseconds * scale)
}

/// Digits, and not too many.
fn number(text: &str) -> Option<i64> {
    let fits = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if fits { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(since: &str, now: &str) -> Option<u64> {
        let now = Moment::parse(now)?;
        Some(Since::parse(since, now)?.age(now).as_secs())
    }

    #[test]
    fn ages() {
        let now = "2026-03-01 12:00:00.500";
        for (since, want) in [
            ("11:59:00", Some(60)),
            ("11:59:00.500", Some(60)),
            ("11:59:00.5", Some(60)),
            ("13:00:00", Some(23 * 3600)),
            ("12:00:01", Some(0)),
            ("2026-02-28 12:00:00", Some(24 * 3600)),
            ("2026-02-27", Some(36 * 3600)),
            ("2026-03-01", Some(20 * 3600)),
            ("2026-02-28", Some(20 * 3600)),
            ("", None),
            ("yesterday", None),
            ("24:00:00", None),
            ("1:2", None),
            ("2026-13-01", None),
            ("99999-01-01", None),
            ("12:00:00.xyz", None),
        ] {
            assert_eq!(age(since, now), want, "{since}");
        }
        assert_eq!(age("23:59:59", "1970-01-01 00:00:00"), Some(1));
        assert_eq!(age("2024-02-29 00:00:00", "2024-03-01 00:00:00"), Some(24 * 3600));
    }

    #[test]
    fn the_same_time_said_differently() {
        let now = Moment::parse("2026-08-20 13:00:00").unwrap();
        let parse = |text: &str| Since::parse(text, now).unwrap();
        let exact = parse("2026-08-19 18:00:00");
        assert_eq!(exact.agreed(parse("2026-08-19")), Some(exact));
        assert_eq!(parse("2026-08-19").agreed(exact), Some(exact));
        assert_eq!(exact.agreed(parse("2026-08-18")), None);
        assert!(exact.agreed(parse("2026-08-19 18:00:01")).is_some());
        assert_eq!(exact.agreed(parse("2026-08-19 18:00:05")), None);
    }
}
