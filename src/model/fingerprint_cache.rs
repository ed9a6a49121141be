//! Fingerprints of models loaded before, so that a large model is hashed once per machine and not at every start.
//!
//! One small file per model directory, in `$XDG_CACHE_HOME/cleave` or else `$HOME/.cache/cleave`. An entry is used if
//! the files' sizes, inodes, modification and change times and the tensors' descriptions are those that it was made
//! for, **and** a sample of the contents is what it was: up to [`SAMPLES`] pieces of [`SAMPLE`] bytes of each tensor.
//! The change time cannot be set, so a file that was overwritten in place is hashed again even if its modification
//! time was put back. On a file system that keeps no change times the sample is what is left; it shows any change
//! that reaches all over a tensor, as another training run's does, and can miss one of a few rows.
//!
//! The cache never fails a load: what cannot be read, written or trusted is as good as absent.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::model::checkpoint::Checkpoint;
use crate::model::config::ModelConfig;
use crate::model::fingerprint::field;
use crate::model::json;
use crate::tensor::mmap::FileIdentity;

/// Models with less than this are hashed every time: it takes some hundredths of a second.
const WORTH_IT: u64 = 64 << 20;
const SAMPLES: usize = 16;
const SAMPLE: usize = 4096;
/// A file that changed so recently may change again without its times showing it: clocks of file systems are coarse.
const SETTLED: Duration = Duration::from_secs(2);
const ENTRY_LIMIT: usize = 1024;

/// The directory that entries are in.
pub struct FingerprintCache {
    directory: PathBuf,
    worth_it: u64,
}

impl FingerprintCache {
    /// The user's cache directory; None if the environment names none.
    pub fn of_user() -> Option<Self> {
        let named = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")))?;
        Some(FingerprintCache { directory: base.join("cleave"), worth_it: WORTH_IT })
    }

    /// The fingerprint of a model directory, from the cache or from `hash`.
    pub fn get_or<E>(
        &self,
        dir: &Path,
        config: &ModelConfig,
        checkpoint: &Checkpoint,
        hash: impl FnOnce() -> Result<[u8; 32], E>,
    ) -> Result<[u8; 32], E> {
        if checkpoint.weight_bytes() < self.worth_it {
            return hash();
        }
        let Ok(dir) = dir.canonicalize() else { return hash() };
        let path = self.directory.join(blake3::hash(dir.as_os_str().as_encoded_bytes()).to_hex().as_str());
        let identity = identity(config, checkpoint);
        let sample = sample(checkpoint);
        if let Some(entry) = self.read(&path).filter(|entry| entry.identity == identity && entry.sample == sample) {
            crate::log!(Debug, "model", "{}: fingerprint from {}", dir.display(), path.display());
            return Ok(entry.fingerprint);
        }
        let fingerprint = hash()?;
        // The files did not change while they were hashed, and are old enough for a later change to show in their times.
        let unchanged =
            |(path, then): (&Path, &FileIdentity)| FileIdentity::of_path(path).is_ok_and(|now| now == *then);
        if files(checkpoint).all(|file| unchanged(file) && is_settled(file.1))
            && let Err(e) = self.write(&path, &Entry { identity, sample, fingerprint })
        {
            crate::log!(Debug, "model", "{}: not kept: {e}", path.display());
        }
        Ok(fingerprint)
    }

    fn read(&self, path: &Path) -> Option<Entry> {
        self.is_trusted().then(|| Entry::parse(&json::read_text(path, ENTRY_LIMIT).ok()??))?
    }

    fn write(&self, path: &Path, entry: &Entry) -> std::io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        if !self.is_trusted() {
            return Err(std::io::Error::other("the directory is not this user's alone"));
        }
        // Renamed into place, so that nobody reads half of one.
        let new = path.with_extension(format!("{}-{}", std::process::id(), crate::sys::monotonic_ns()));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let written = file.write_all(entry.text().as_bytes()).and_then(|()| fs::rename(&new, path));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }

    /// Whether nobody else can have put an entry there.
    fn is_trusted(&self) -> bool {
        let own = crate::sys::socket::effective_uid();
        fs::metadata(&self.directory).is_ok_and(|meta| meta.is_dir() && meta.uid() == own && meta.mode() & 0o022 == 0)
    }
}

struct Entry {
    /// Hash of everything but the contents: config, tensors, files.
    identity: String,
    sample: String,
    fingerprint: [u8; 32],
}

const FIRST_LINE: &str = "cleave model fingerprint v2";

impl Entry {
    fn text(&self) -> String {
        let fingerprint = blake3::Hash::from_bytes(self.fingerprint).to_hex();
        format!("{FIRST_LINE}\n{}\n{}\n{fingerprint}\n", self.identity, self.sample)
    }

    fn parse(text: &str) -> Option<Entry> {
        let mut lines = text.lines();
        if lines.next()? != FIRST_LINE {
            return None;
        }
        let (identity, sample) = (lines.next()?.to_owned(), lines.next()?.to_owned());
        let fingerprint = *blake3::Hash::from_hex(lines.next()?).ok()?.as_bytes();
        Some(Entry { identity, sample, fingerprint })
    }
}

fn files(checkpoint: &Checkpoint) -> impl Iterator<Item = (&Path, &FileIdentity)> {
    checkpoint.shards().into_iter().map(|shard| (Path::new(&shard.file), shard.mapping.identity()))
}

fn is_settled(file: &FileIdentity) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = |(seconds, nanoseconds): (i64, i64)| {
        now.saturating_sub(Duration::new(seconds.max(0) as u64, nanoseconds.clamp(0, 999_999_999) as u32))
    };
    since(file.modified) > SETTLED && since(file.changed) > SETTLED
}

/// Everything that an entry depends on but the contents.
fn identity(config: &ModelConfig, checkpoint: &Checkpoint) -> String {
    let mut hasher = blake3::Hasher::new();
    field(&mut hasher, config.canonical().as_bytes());
    for (path, file) in files(checkpoint) {
        field(&mut hasher, path.file_name().unwrap_or_default().as_encoded_bytes());
        field(&mut hasher, format!("{file:?}").as_bytes());
    }
    for tensor in checkpoint.tensors() {
        field(&mut hasher, tensor.describe().as_bytes());
        field(&mut hasher, tensor.stored.shard.file.as_bytes());
        hasher.update(&(tensor.stored.offset as u64).to_le_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

fn sample(checkpoint: &Checkpoint) -> String {
    let mut hasher = blake3::Hasher::new();
    for tensor in checkpoint.tensors() {
        let bytes = tensor.bytes();
        if bytes.len() <= SAMPLES * SAMPLE {
            hasher.update(bytes);
            continue;
        }
        for i in 0..SAMPLES {
            let start = (bytes.len() - SAMPLE) / (SAMPLES - 1) * i;
            hasher.update(&bytes[start..start + SAMPLE]);
        }
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::fs::{File, FileTimes};

    const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llama2-mha");

    /// A model directory of its own and a cache that takes it.
    struct Rig {
        _root: tempfile::TempDir,
        dir: PathBuf,
        cache: FingerprintCache,
        hashed: Cell<u8>,
    }

    impl Rig {
        fn new() -> Rig {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("model");
            fs::create_dir(&dir).unwrap();
            for file in ["config.json", "model.safetensors"] {
                fs::copy(Path::new(FIXTURE).join(file), dir.join(file)).unwrap();
            }
            let cache = FingerprintCache { directory: root.path().join("cache/cleave"), worth_it: 0 };
            Rig { _root: root, dir, cache, hashed: Cell::new(0) }
        }

        /// The fingerprint: the number of the call that hashed it.
        fn get(&self) -> u8 {
            let config = ModelConfig::read(&self.dir).unwrap();
            let checkpoint = Checkpoint::open(&self.dir, &config).unwrap();
            let hash = || {
                self.hashed.set(self.hashed.get() + 1);
                Ok::<_, ()>([self.hashed.get(); 32])
            };
            self.cache.get_or(&self.dir, &config, &checkpoint, hash).unwrap()[0]
        }

        fn weights(&self) -> PathBuf {
            self.dir.join("model.safetensors")
        }

        /// Makes the file look old; returns when its change time is old as well, which nothing but waiting does.
        fn settle(&self) {
            let old = SystemTime::now() - Duration::from_secs(1000);
            let file = File::options().write(true).open(self.weights()).unwrap();
            file.set_times(FileTimes::new().set_modified(old)).unwrap();
            while !is_settled(&FileIdentity::of_path(&self.weights()).unwrap()) {
                std::thread::sleep(Duration::from_millis(50));
            }
        }

        fn entries(&self) -> Vec<PathBuf> {
            let entries = fs::read_dir(&self.cache.directory).into_iter().flatten();
            entries.map(|entry| entry.unwrap().path()).collect()
        }
    }

    #[test]
    fn a_model_is_hashed_once_and_again_when_it_may_have_changed() {
        let rig = Rig::new();
        assert_eq!((rig.get(), rig.entries().len()), (1, 0), "written just now: nothing is kept");
        rig.settle();
        assert_eq!((rig.get(), rig.get()), (2, 2));
        assert_eq!(rig.entries().len(), 1);

        // The same size and modification time, other contents in the middle of a tensor.
        let modified = fs::metadata(rig.weights()).unwrap().modified().unwrap();
        let mut bytes = fs::read(rig.weights()).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let mut file = File::options().write(true).open(rig.weights()).unwrap();
        file.write_all(&bytes).unwrap();
        file.set_times(FileTimes::new().set_modified(modified)).unwrap();
        drop(file);
        assert_eq!(rig.get(), 3);

        // A decoder fact.
        rig.settle();
        assert_eq!((rig.get(), rig.get()), (4, 4));
        let config = fs::read_to_string(rig.dir.join("config.json")).unwrap();
        fs::write(rig.dir.join("config.json"), config.replace("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 2e-05"))
            .unwrap();
        assert_eq!(rig.get(), 5);
        assert_eq!(rig.entries().len(), 1, "one entry per directory, replaced");
    }

    /// The times of a file system without change times, or an entry from elsewhere: the sample decides.
    #[test]
    fn an_entry_whose_sample_differs_is_not_used() {
        let rig = Rig::new();
        rig.settle();
        assert_eq!(rig.get(), 1);
        let path = &rig.entries()[0];
        let mut entry = Entry::parse(&fs::read_to_string(path).unwrap()).unwrap();
        entry.sample = "0".repeat(64);
        fs::write(path, entry.text()).unwrap();
        assert_eq!(rig.get(), 2);
        for broken in ["", "x", FIRST_LINE] {
            fs::write(path, broken).unwrap();
            let before = rig.hashed.get();
            assert_eq!(rig.get(), before + 1, "{broken:?}");
        }
    }

    #[test]
    fn a_directory_of_others_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let rig = Rig::new();
        rig.settle();
        assert_eq!((rig.get(), rig.get()), (1, 1));
        fs::set_permissions(&rig.cache.directory, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!((rig.get(), rig.get()), (2, 3));
        // A directory that cannot be created is not an error either.
        let rig = Rig::new();
        rig.settle();
        fs::write(rig.cache.directory.parent().unwrap(), "a file").unwrap();
        assert_eq!((rig.get(), rig.get()), (1, 2));
    }
}
