//! Medians, spreads and ratios as tables that can be pasted into a document.

use std::time::Duration;

use crate::bench::contestant::Contestant;
use crate::bench::load::{CONNECTING, DEPLOYED, IN_FLIGHT, Load, Measured};

/// Several measurements of one thing.
pub(super) struct Sample(Vec<f64>);

impl Sample {
    pub(super) fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// In milliseconds.
    pub(super) fn of_times(times: impl IntoIterator<Item = Duration>) -> Self {
        Self::new(times.into_iter().map(|time| time.as_secs_f64() * 1000.0))
    }

    /// In seconds.
    pub(super) fn of_seconds(times: impl IntoIterator<Item = Duration>) -> Self {
        Self::new(times.into_iter().map(|time| time.as_secs_f64()))
    }

    /// The middle one, or the mean of the two in the middle.
    pub(super) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match self.0.len() {
            0 => f64::NAN,
            even if even.is_multiple_of(2) => f64::midpoint(self.0[middle - 1], self.0[middle]),
            _ => self.0[middle],
        }
    }

    /// How many times as much as `others` these are, one by one, in the order in which they were measured.
    pub(super) fn ratios(
        values: impl IntoIterator<Item = Duration>,
        others: impl IntoIterator<Item = Duration>,
    ) -> Self {
        let pairs = values.into_iter().zip(others);
        Self::new(pairs.map(|(value, other)| value.as_secs_f64() / other.as_secs_f64()))
    }

    /// The median with the smallest and the largest one.
    pub(super) fn shown(&self, decimals: usize) -> String {
        let (Some(least), Some(most)) = (self.0.first(), self.0.last()) else {
            return "-".to_owned();
        };
        format!(
            "{:.decimals$} ({least:.decimals$} to {most:.decimals$})",
            self.median()
        )
    }
}

/// Rows of equal length, the first of them the header, as a Markdown table that is aligned as plain text too.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for (n, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            text += &format!("| {cell:<width$} ");
        }
        text += "|\n";
        if n == 0 {
            for width in &widths {
                text += &format!("|{}", "-".repeat(width + 2));
            }
            text += "|\n";
        }
    }
    text
}

/// What is compared: its name, how many decimals it is shown with, and where it stands in a measurement.
type Row = (String, usize, fn(&Measured) -> f64);

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn rows(load: &Load) -> Vec<Row> {
    let (agents, alone) = (load.agents(), load.published_alone());
    vec![
        (
            format!("{agents} agents connect, each gets its retained deployment, ms"),
            0,
            |m| ms(m.connect),
        ),
        (
            "  CPU time of the broker meanwhile, ms".to_owned(),
            0,
            |m| ms(m.connect_cpu),
        ),
        (
            format!("a deployment to each of {agents} connected agents, ms"),
            0,
            |m| ms(m.deploy),
        ),
        (
            "  CPU time of the broker meanwhile, ms".to_owned(),
            0,
            |m| ms(m.deploy_cpu),
        ),
        (
            format!("{agents} agents reconnect, get theirs, report presence and status, ms"),
            0,
            |m| ms(m.storm),
        ),
        (
            "  CPU time of the broker meanwhile, ms".to_owned(),
            0,
            |m| ms(m.storm_cpu),
        ),
        (
            format!("a monitor gets the status of all {agents}, ms"),
            0,
            |m| ms(m.snapshot),
        ),
        ("one deployment, publish to agent, ms".to_owned(), 2, |m| {
            ms(m.single)
        }),
        (
            format!("{alone} deployments published and acknowledged, ms"),
            0,
            |m| ms(m.publish),
        ),
        ("resident memory a connection, KiB".to_owned(), 1, |m| {
            Duration::from_millis(m.connection).as_secs_f64() * 1000.0 / 1024.0
        }),
    ]
}

/// Prints what every broker did, and Hoist's in relation to the others.
pub(super) fn print_brokers(load: &Load, measured: &[(Contestant, Vec<Measured>)]) {
    let rounds = measured.first().map_or(0, |(_, results)| results.len());
    println!(
        "## Broker\n\n\
         Median of {rounds} rounds (least to most), the brokers in turn, each started anew with an empty store on\n\
         127.0.0.1. All with the same CA and certificates, mutual TLS, access rules by certificate, QoS 1.\n\
         {CONNECTING} agents connect at a time; a publisher has {IN_FLIGHT} publishes under way; a signed deployment has {} bytes\n\
         and is signed before the clock runs; all agents get {DEPLOYED} of them in a row, of which a round has the median.\n\
         hoist-broker's limits of rates and connections are lifted.\n\
         hoist-broker verifies every deployment's signature and acknowledges it when it is on disk; without trusted_keys\n\
         it verifies nothing, as mosquitto does. mosquitto has persistence on and acknowledges before it writes, which it\n\
         does every 30 minutes; \"saving\", with autosave_on_changes true and autosave_interval 1, at every change.\n\
         The load generator runs on the same {} cores as the broker.\n",
        load.deployment_size(),
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    );
    let mut header = vec![String::new()];
    header.extend(
        measured
            .iter()
            .map(|(contestant, _)| contestant.to_string()),
    );
    let (ours, theirs): (Vec<_>, Vec<_>) = measured
        .iter()
        .partition(|(contestant, _)| contestant.is_ours());
    let pairs = || {
        let with = |one| theirs.iter().map(move |other| (one, *other));
        ours.iter().flat_map(move |one| with(*one))
    };
    for ((one, _), (other, _)) in pairs() {
        header.push(format!("{one} : {other}"));
    }
    let mut cells = vec![header];
    for (name, decimals, value) in rows(load) {
        let mut row = vec![name];
        for (_, results) in measured {
            row.push(Sample::new(results.iter().map(value)).shown(decimals));
        }
        for ((_, ours), (_, theirs)) in pairs() {
            // Round by round: what disturbed the machine disturbed both.
            let ratios = ours
                .iter()
                .zip(theirs)
                .map(|(ours, theirs)| value(ours) / value(theirs));
            row.push(Sample::new(ratios).shown(2));
        }
        cells.push(row);
    }
    println!("{}", table(&cells));
    println!(
        "Signing {} deployments took {:.0} ms, to be added to their publishing.\n",
        load.published_alone(),
        ms(load.signing())
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_has_as_many_below_as_above() {
        assert!((Sample::new([5.0, 1.0, 2.0]).median() - 2.0).abs() < 1e-9);
        assert!((Sample::new([4.0, 1.0, 2.0, 9.0]).median() - 3.0).abs() < 1e-9);
        assert_eq!(Sample::new([5.0, 1.0, 2.0]).shown(1), "2.0 (1.0 to 5.0)");
        assert_eq!(Sample::new([]).shown(1), "-");
    }

    #[test]
    fn a_ratio_is_one_of_what_was_measured_together() {
        let ms = |times: [u64; 3]| times.map(Duration::from_millis);
        let ratios = Sample::ratios(ms([20, 300, 40]), ms([10, 100, 10]));
        assert_eq!(ratios.shown(1), "3.0 (2.0 to 4.0)");
    }

    #[test]
    fn a_table_is_aligned() {
        let rows = [["a", "bb"], ["ccc", "d"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "| a   | bb |\n|-----|----|\n| ccc | d  |\n");
    }
}
