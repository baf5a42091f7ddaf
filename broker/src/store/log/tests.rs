//! What a log promises: everything that was appended, or a clear no.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

type Model = BTreeMap<String, Vec<u8>>;

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self) -> &Utf8Path {
        Utf8Path::from_path(self.0.path()).unwrap()
    }

    fn folder(&self) -> Folder {
        Folder::lock(self.path()).unwrap()
    }

    fn file(&self) -> Utf8PathBuf {
        self.path().join(FILE)
    }

    fn create(&self) -> Log {
        Log::create(self.folder(), std::iter::empty::<fn(&mut Batch)>()).unwrap()
    }

    fn read(&self) -> Result<(Model, Contents), ReadError> {
        let mut model = Model::new();
        let contents = read(&self.file(), |key, value| {
            apply(&mut model, key, value);
            true
        })?;
        Ok((model, contents))
    }

    /// As a broker does that starts.
    fn open(&self) -> (Log, Model) {
        let (model, contents) = self.read().unwrap();
        (Log::resume(self.folder(), &contents).unwrap(), model)
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.file()).unwrap()
    }

    fn write(&self, bytes: &[u8]) {
        std::fs::write(self.file(), bytes).unwrap();
    }
}

fn apply(model: &mut Model, key: &str, value: &[u8]) {
    if value.is_empty() {
        model.remove(key);
    } else {
        model.insert(key.to_owned(), value.to_vec());
    }
}

fn batch(changes: &[(&str, &[u8])]) -> Batch {
    let mut batch = Batch::default();
    for (key, value) in changes {
        batch.put(key, |out| out.extend_from_slice(value));
    }
    batch
}

/// Three batches, and where each of them ends in the file.
fn three(place: &Place) -> [u64; 3] {
    let mut log = place.create();
    [
        batch(&[("a", b"1"), ("b", b"2")]),
        batch(&[("a", b""), ("c", &[7; 300])]),
        batch(&[("b", b"3")]),
    ]
    .map(|mut batch| {
        log.append(&mut batch).unwrap();
        log.len
    })
}

#[test]
fn a_folder_has_one_user() {
    let place = Place::new();
    let first = place.folder();
    assert!(matches!(
        Folder::lock(place.path()),
        Err(FolderError::InUse)
    ));
    drop(first);
    place.folder();
}

#[test]
fn wherever_the_last_batch_is_torn_the_ones_before_are_there() {
    let place = Place::new();
    let [_, second, third] = three(&place);
    let whole = place.bytes();
    let before = Model::from([
        ("b".to_owned(), b"2".to_vec()),
        ("c".to_owned(), vec![7; 300]),
    ]);
    for len in second..third {
        let kept = usize::try_from(len).unwrap();
        // Cut off there, or never written from there on: what a crash leaves depends on the file system.
        let mut zeros = whole.clone();
        zeros[kept..].fill(0);
        for torn in [whole[..kept].to_vec(), zeros] {
            place.write(&torn);
            let (model, contents) = place.read().unwrap();
            assert_eq!(model, before, "at {len}");
            // Zeros are room, whoever has put them there.
            let rest = &torn[usize::try_from(second).unwrap()..];
            let torn = rest.iter().rposition(|byte| *byte != 0);
            assert_eq!(
                contents.torn,
                torn.map_or(0, |last| last as u64 + 1),
                "at {len}"
            );
            let (mut log, _) = place.open();
            log.append(&mut batch(&[("d", b"4")])).unwrap();
            let (model, contents) = place.read().unwrap();
            assert_eq!(model.get("d").unwrap(), b"4");
            assert_eq!((model.len(), contents.torn), (3, 0), "at {len}");
        }
    }
}

#[test]
fn what_the_disk_has_changed_is_noticed_at_every_byte() {
    let place = Place::new();
    let [_, second, third] = three(&place);
    let whole = place.bytes();
    for at in 0..usize::try_from(third).unwrap() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        place.write(&damaged);
        let read = place.read();
        match (at as u64, &read) {
            (0..21, Err(ReadError::NoLog)) => {}
            // Under another salt nothing is a batch, and nothing looks like one that follows.
            (21..29, Ok((model, contents))) => {
                assert!(model.is_empty() && contents.torn > 0, "at {at}");
            }
            (at, Err(ReadError::Damaged(found))) if at < second => assert!(*found <= at),
            // The last batch cannot be told from one that was torn, but its loss is told.
            (at, Ok((_, contents))) if at >= second => assert_eq!(contents.len, second),
            _ => panic!("at {at}: {read:?}"),
        }
    }
}

#[test]
fn a_batch_that_the_disk_has_lost_is_no_room() {
    let place = Place::new();
    let [first, second, _] = three(&place).map(|end| usize::try_from(end).unwrap());
    let mut damaged = place.bytes();
    damaged[first..second].fill(0);
    place.write(&damaged);
    let read = place.read();
    assert!(matches!(read, Err(ReadError::Damaged(at)) if at == first as u64));
}

#[test]
fn a_batch_that_fits_into_the_room_does_not_change_the_files_length() {
    let place = Place::new();
    three(&place);
    let (mut log, mut model) = place.open();
    let len = place.bytes().len();
    for key in ["d", "e", "f"] {
        let value = [7; 1000];
        log.append(&mut batch(&[(key, &value)])).unwrap();
        apply(&mut model, key, &value);
        assert_eq!(place.bytes().len(), len);
        assert_eq!(place.read().unwrap().0, model);
    }
    let large = vec![7; 2 * len];
    log.append(&mut batch(&[("large", &large)])).unwrap();
    apply(&mut model, "large", &large);
    let (read, contents) = place.read().unwrap();
    assert_eq!((read, contents.torn), (model, 0));
    log.close().unwrap();
    let contents = place.read().unwrap().1;
    assert!(contents.closed);
    assert_eq!(
        place.bytes().len() as u64,
        contents.len,
        "who closes it takes the room away"
    );
}

#[test]
fn once_closed_the_last_batch_cannot_be_lost_in_silence() {
    let place = Place::new();
    let [_, second, third] = three(&place);
    let (log, _) = place.open();
    log.close().unwrap();
    assert!(place.read().unwrap().1.closed);
    let whole = place.bytes();
    for at in second..third {
        let mut damaged = whole.clone();
        damaged[usize::try_from(at).unwrap()] ^= 0x10;
        place.write(&damaged);
        assert!(
            matches!(place.read(), Err(ReadError::Damaged(_))),
            "at {at}"
        );
    }
}

#[test]
fn a_file_that_is_cut_short_is_not_one_that_was_closed() {
    let place = Place::new();
    three(&place);
    let (log, _) = place.open();
    log.close().unwrap();
    let whole = place.bytes();
    for len in 29..whole.len() {
        place.write(&whole[..len]);
        assert!(!place.read().unwrap().1.closed, "{len}");
    }
    for len in 0..29 {
        place.write(&whole[..len]);
        assert!(matches!(place.read(), Err(ReadError::NoLog)), "{len}");
    }
}

#[test]
fn what_no_broker_has_written_is_refused() {
    let place = Place::new();
    three(&place);
    let result = read(&place.file(), |key, _| key != "c");
    assert!(matches!(result, Err(ReadError::Foreign(_))), "{result:?}");
}

#[test]
fn a_file_written_anew_that_never_got_its_name_is_nobodys() {
    let place = Place::new();
    three(&place);
    std::fs::write(place.path().join(NEXT), b"half of it").unwrap();
    let (mut log, model) = place.open();
    assert_eq!(model.len(), 2);
    log.rewrite([|batch: &mut Batch| batch.put("z", |out| out.push(1))].into_iter())
        .unwrap();
    assert_eq!(
        place.read().unwrap().0,
        Model::from([("z".to_owned(), vec![1])])
    );
    assert!(!place.path().join(NEXT).exists());
}

#[test]
fn a_probe_leaves_nothing() {
    let place = Place::new();
    three(&place);
    let (mut log, before) = place.open();
    log.probe().unwrap();
    let (after, contents) = place.read().unwrap();
    assert_eq!((after, contents.torn), (before, 0));
    log.append(&mut batch(&[("d", b"4")])).unwrap();
    assert_eq!(place.read().unwrap().0.len(), 3);
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<(u8, Vec<u8>)>),
    Rewrite,
    /// The process ends as it is, and another one starts.
    Crash,
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = prop::collection::vec(any::<u8>(), 0..40);
    let step = prop_oneof![
        6 => prop::collection::vec((0..6_u8, value), 1..5).prop_map(Step::Append),
        1 => Just(Step::Rewrite),
        1 => Just(Step::Crash),
        1 => Just(Step::Close),
    ];
    prop::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_log_is_what_a_map_in_memory_is(steps in steps()) {
        let place = Place::new();
        let mut log = place.create();
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Append(changes) => {
                    let mut batch = Batch::default();
                    for (key, value) in &changes {
                        let key = format!("key-{key}");
                        batch.put(&key, |out| out.extend_from_slice(value));
                        apply(&mut model, &key, value);
                    }
                    log.append(&mut batch).unwrap();
                }
                Step::Rewrite => {
                    let all = model.iter().map(|(key, value)| {
                        move |batch: &mut Batch| batch.put(key, |out| out.extend_from_slice(value))
                    });
                    log.rewrite(all).unwrap();
                    prop_assert_eq!(log.grown(), 0);
                }
                Step::Crash => {
                    drop(log);
                    log = place.open().0;
                }
                Step::Close => {
                    log.close().unwrap();
                    prop_assert!(place.read().unwrap().1.closed);
                    log = place.open().0;
                }
            }
            let (stored, contents) = place.read().unwrap();
            prop_assert_eq!(&stored, &model);
            prop_assert_eq!(contents.torn, 0);
        }
    }
}
