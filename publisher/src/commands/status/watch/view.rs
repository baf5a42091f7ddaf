//! What the view shows: a summary, then machines, those first that somebody should look at. Pure.

use hoist_protocol::{AgentName, FleetName, Presence, State, Timestamp};

use super::super::{HEADER, has_failed, row};
use crate::console::one_line;
use crate::console::table::{Page, Tone, lines};
use crate::snapshot::{Seen, Snapshot};

/// Lines of the view that show no machine: the summary, the header, and the foot.
const FRAME: usize = 3;

/// A terminal that is narrower has no room for the ids of deployments, which tell least.
const ROOMY: u16 = 120;

/// Where these are among the columns.
const DEPLOYMENT: usize = 5;

/// Which other machines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scroll {
    /// One up.
    Up,
    /// One down.
    Down,
    /// As many up as are shown.
    PageUp,
    /// As many down as are shown.
    PageDown,
    /// The first.
    First,
    /// The last.
    Last,
}

/// In this order machines stand in the view.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Rank {
    NotWell,
    UnderWay,
    Held,
    Quiet,
}

impl Rank {
    fn of(seen: &Seen) -> Self {
        let Some(status) = &seen.status else {
            return match seen.unreadable {
                Some(_) => Self::NotWell,
                None => Self::Quiet,
            };
        };
        match status.state {
            _ if has_failed(seen) => Self::NotWell,
            State::Held => Self::Held,
            State::Idle => Self::Quiet,
            state if state.is_final() => Self::Quiet,
            _ => Self::UnderWay,
        }
    }
}

/// The view of a fleet.
pub(super) struct View {
    fleet: FleetName,
    colours: bool,
    /// How many machines are above the first that is shown.
    offset: usize,
    /// How many had room in the last picture, and how many there were.
    shown: usize,
    all: usize,
}

impl View {
    pub(super) const fn new(fleet: FleetName, colours: bool) -> Self {
        Self {
            fleet,
            colours,
            offset: 0,
            shown: 0,
            all: 0,
        }
    }

    /// Shows other machines from the next picture on.
    pub(super) fn scroll(&mut self, by: Scroll) {
        self.offset = match by {
            Scroll::Up => self.offset.saturating_sub(1),
            Scroll::Down => self.offset + 1,
            Scroll::PageUp => self.offset.saturating_sub(self.shown),
            Scroll::PageDown => self.offset + self.shown,
            Scroll::First => 0,
            Scroll::Last => self.all,
        };
        self.offset = self.offset.min(self.last_offset());
    }

    const fn last_offset(&self) -> usize {
        self.all.saturating_sub(self.shown)
    }

    /// The picture, for a terminal of `size` columns and rows: no line is wider, and there are no more.
    pub(super) fn lines(
        &mut self,
        snapshot: &Snapshot,
        is_meant: impl Fn(&AgentName, &Seen) -> bool,
        trouble: Option<&str>,
        now: Timestamp,
        (columns, rows): (u16, u16),
    ) -> Vec<String> {
        let all = snapshot.machines().iter();
        let mut machines: Vec<(Rank, &AgentName, &Seen)> = all
            .filter(|(agent, seen)| is_meant(agent, seen))
            .map(|(agent, seen)| (Rank::of(seen), agent, seen))
            .collect();
        machines.sort_by_key(|(rank, agent, _)| (*rank, *agent));
        self.all = machines.len();
        self.shown = usize::from(rows).saturating_sub(FRAME).max(1);
        self.offset = self.offset.min(self.last_offset());
        let page = Page::terminal(columns, self.colours);
        let mut picture = vec![match trouble {
            Some(trouble) => page.paint(Tone::Bad, &cut(trouble, columns)),
            None => cut(&self.summary(&machines), columns),
        }];
        let visible = machines.iter().skip(self.offset).take(self.shown);
        let mut header = HEADER.to_vec();
        let rows_shown = visible.map(|(_, agent, seen)| row(agent, seen, now));
        let mut cells: Vec<_> = rows_shown.collect();
        if columns < ROOMY {
            header.remove(DEPLOYMENT);
            for row in &mut cells {
                row.remove(DEPLOYMENT);
            }
        }
        picture.extend(lines(page, &header, cells));
        picture.push(cut(&self.foot(), columns));
        picture.truncate(rows.into());
        picture
    }

    fn summary(&self, machines: &[(Rank, &AgentName, &Seen)]) -> String {
        let online = machines
            .iter()
            .filter(|(_, _, seen)| seen.presence == Some(Presence::Online));
        let mut summary = format!(
            "{}: {} machines, {} online",
            self.fleet,
            machines.len(),
            online.count()
        );
        for (rank, what) in [
            (Rank::NotWell, "not well"),
            (Rank::UnderWay, "under way"),
            (Rank::Held, "held"),
        ] {
            match machines.iter().filter(|(of, ..)| *of == rank).count() {
                0 => {}
                count => summary += &format!(", {count} {what}"),
            }
        }
        summary
    }

    fn foot(&self) -> String {
        let last = (self.offset + self.shown).min(self.all);
        match self.all {
            0 => "no machine is like that; q leaves".to_owned(),
            all if all <= self.shown => "q leaves".to_owned(),
            all => format!(
                "{} to {last} of {all}; arrows and page keys show others, q leaves",
                self.offset + 1
            ),
        }
    }
}

/// As much of it as has room.
fn cut(text: &str, columns: u16) -> String {
    crate::console::table::cut(&one_line(text), columns.into())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use hoist_protocol::{Channel, Reason, Text};
    use unicode_width::UnicodeWidthStr as _;

    use super::*;
    use crate::testing::{machine, order, path, status};

    const NOW: Timestamp = Timestamp::from_ms(10_000_000);

    /// So many machines; two are not well, one is under way, the others are fine.
    fn fleet(machines: usize) -> Snapshot {
        let mut snapshot = Snapshot::new(machine("x").fleet);
        for n in 0..machines {
            let machine = machine(&format!("web-{n:04}"));
            let mut report = status(order(9_990_000), State::Succeeded);
            report.agent = machine.agent.clone();
            report.current_path = Some(path("nixos-system-web-24.11.20241126.abcdefg"));
            match n {
                3 | 7 => {
                    report.state = State::RolledBack;
                    report.reason = Some(Reason::HealthCheckFailed);
                    report.message =
                        Text::lossy("nothing listens on port 80, which was asked for three times");
                }
                5 => {
                    report.state = State::Fetching;
                    report.progress = Some(41);
                }
                _ => {}
            }
            let presence: &[u8] = if n % 10 == 9 { b"offline" } else { b"online" };
            for (channel, payload) in [
                (Channel::Status, &report.to_json()[..]),
                (Channel::Presence, presence),
            ] {
                snapshot.saw(&machine.topic(channel), payload).unwrap();
            }
        }
        snapshot
    }

    fn picture(view: &mut View, machines: usize, size: (u16, u16)) -> Vec<String> {
        view.lines(&fleet(machines), |_, _| true, None, NOW, size)
    }

    fn view() -> View {
        View::new(machine("x").fleet, false)
    }

    #[test]
    fn who_needs_somebody_stands_first() {
        let lines = picture(&mut view(), 12, (80, 10)).join("\n");
        expect![[r#"
            prod: 12 machines, 11 online, 2 not well, 1 under way
            MACHINE   STATE          RUNS                 UPDATED  ONLINE  MESSAGE
            web-0003  rolled back    0c5b8w3-nixos-syst…  10s ago  online  [health_check_…
            web-0007  rolled back    0c5b8w3-nixos-syst…  10s ago  online  [health_check_…
            web-0005  fetching 41 %  0c5b8w3-nixos-syst…  10s ago  online
            web-0000  succeeded      0c5b8w3-nixos-syst…  10s ago  online
            web-0001  succeeded      0c5b8w3-nixos-syst…  10s ago  online
            web-0002  succeeded      0c5b8w3-nixos-syst…  10s ago  online
            web-0004  succeeded      0c5b8w3-nixos-syst…  10s ago  online
            1 to 7 of 12; arrows and page keys show others, q leaves"#]]
        .assert_eq(&lines);
        let lines = picture(&mut view(), 12, (160, 10)).join("\n");
        expect![[r#"
            prod: 12 machines, 11 online, 2 not well, 1 under way
            MACHINE   STATE          RUNS                                             UPDATED  ONLINE  DEPLOYMENT  MESSAGE
            web-0003  rolled back    0c5b8w3-nixos-system-web-24.11.20241126.abcdefg  10s ago  online  00986f70    [health_check_failed] nothing listens on port 80, whic…
            web-0007  rolled back    0c5b8w3-nixos-system-web-24.11.20241126.abcdefg  10s ago  online  00986f70    [health_check_failed] nothing listens on port 80, whic…
            web-0005  fetching 41 %  0c5b8w3-nixos-system-web-24.11.20241126.abcdefg  10s ago  online  00986f70
            web-0000  succeeded      0c5b8w3-nixos-system-web-24.11.20241126.abcdefg  10s ago  online  00986f70
            web-0001  succeeded      0c5b8w3-nixos-system-web-24.11.20241126.abcdefg  10s ago  online  00986f70
            web-0002  succeeded      0c5b8w3-nixos-system-web-24.11.20241126.abcdefg  10s ago  online  00986f70
            web-0004  succeeded      0c5b8w3-nixos-system-web-24.11.20241126.abcdefg  10s ago  online  00986f70
            1 to 7 of 12; arrows and page keys show others, q leaves"#]].assert_eq(&lines);
    }

    #[test]
    fn the_column_that_is_left_out_is_that_of_the_ids() {
        assert_eq!(HEADER[DEPLOYMENT], "DEPLOYMENT");
    }

    #[test]
    fn a_picture_never_is_larger_than_the_terminal() {
        for size in [(80, 24), (160, 50), (40, 5), (20, 3), (300, 10), (1, 1)] {
            for colours in [true, false] {
                let mut view = View::new(machine("x").fleet, colours);
                let lines = picture(&mut view, 50, size);
                assert!(lines.len() <= size.1.into(), "{size:?}");
                if !colours && size.0 >= 60 {
                    let widest = lines.iter().map(|line| line.width()).max().unwrap();
                    assert!(widest <= size.0.into(), "{size:?}: {lines:?}");
                }
            }
        }
    }

    #[test]
    fn the_last_machine_is_reached_and_not_passed() {
        let mut view = view();
        let size = (80, 23);
        picture(&mut view, 50, size);
        view.scroll(Scroll::PageDown);
        let second = picture(&mut view, 50, size);
        assert!(
            second.last().unwrap().starts_with("21 to 40 of 50"),
            "{second:?}"
        );
        view.scroll(Scroll::PageDown);
        view.scroll(Scroll::Down);
        let last = picture(&mut view, 50, size);
        assert!(
            last.last().unwrap().starts_with("31 to 50 of 50"),
            "{last:?}"
        );
        // Machines that are gone, or a larger terminal, take no picture away.
        let fewer = picture(&mut view, 10, size);
        assert_eq!(fewer.last().unwrap(), "q leaves");
        view.scroll(Scroll::Last);
        view.scroll(Scroll::First);
        assert_eq!(view.offset, 0);
    }

    #[test]
    fn a_lost_connection_is_said_in_the_place_of_the_summary() {
        let mut view = view();
        let lines = view.lines(&fleet(1), |_, _| true, Some("gone\u{1b}[2J"), NOW, (80, 24));
        assert_eq!(lines[0], "gone\u{fffd}[2J");
    }
}
