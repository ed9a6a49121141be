//! Moves a sequence between caches of different layouts. If values keep their bits (block sizes, shards), the
//! generation continues bit for bit. If they are rounded (dtypes), the sequence still knows what it has read.

use crate::common::*;
use cleave::engine::{CacheOptions, ModelCache, Request, Role};
use cleave::error::Status;
use cleave::kv::KvId;
use cleave::tensor::Dtype;
use std::sync::Arc;

/// Block size, dtype and number of shards of a cache.
#[derive(Clone, Copy, Debug)]
struct Layout(u32, Dtype, u32);

impl Layout {
    fn options(self) -> CacheOptions {
        let Layout(block_tokens, dtype, shards) = self;
        let secret = Some([3; 32]);
        CacheOptions { block_tokens, dtype: Some(dtype), shards, secret, bytes: 8 << 20, ..CacheOptions::default() }
    }

    fn cache(self) -> Arc<ModelCache> {
        cache(self.options())
    }
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Image,
    Ticket,
}

fn data(from: &ModelCache, kv: u64, way: Way) -> Vec<u8> {
    match way {
        Way::Ticket => cleave::transport::ticket(from.kv(), KvId(kv)).unwrap(),
        Way::Image => {
            let mut image = vec![0; from.kv().handles().info(KvId(kv)).unwrap().image_bytes as usize];
            assert_eq!(from.kv().images().read(KvId(kv), 0, &mut image).unwrap(), image.len());
            image
        }
    }
}

/// Moves a handle through a chain of caches and releases the handles left behind.
fn carry(caches: &[Arc<ModelCache>], mut kv: u64, way: Way) -> u64 {
    for pair in caches.windows(2) {
        let landed = pair[1].import(None, &data(&pair[0], kv, way), 0).unwrap();
        while pair[1].kv().handles().info(landed).unwrap().importing {
            std::thread::yield_now();
        }
        let _ = pair[0].kv().handles().release(KvId(kv));
        kv = landed.0;
    }
    kv
}

/// Prefills in the first cache and decodes in the last. Returns the tokens and the bits of their logprobs.
fn across(host: &mut Host, caches: &[Arc<ModelCache>], job: Request, way: Way) -> (Vec<u32>, Vec<u32>) {
    let prefill = host.engine(&caches[0], role(Role::Prefill));
    let decode = host.engine(caches.last().unwrap(), role(Role::Decode));
    let first = host.run(&prefill, job);
    let kv = carry(caches, first.end.unwrap().kv, way);
    let rest = host.run(&decode, continuation(kv));
    ([first.tokens, rest.tokens].concat(), [first.logprobs, rest.logprobs].concat())
}

fn alone(host: &mut Host, layout: Layout, job: Request) -> (Vec<u32>, Vec<u32>) {
    let engine = host.engine(&layout.cache(), role(Role::Mixed));
    let all = host.run(&engine, job);
    (all.tokens, all.logprobs)
}

#[test]
fn block_sizes_and_shards_change_no_bit() {
    let mut host = Host::new();
    for dtype in [Dtype::Bf16, Dtype::I8] {
        let l = |block_tokens, shards| Layout(block_tokens, dtype, shards);
        let paths: [&[Layout]; 6] = [
            &[l(16, 1), l(32, 1)],
            &[l(16, 1), l(5, 1)],
            &[l(5, 1), l(16, 1)],
            &[l(16, 1), l(16, 2)],
            &[l(16, 1), l(16, 2), l(16, 1)],
            &[l(16, 2), l(7, 1), l(32, 2)],
        ];
        for (n, salt) in [(1, 1), (16, 2), (77, 3)] {
            let job = request(&prompt(n, salt), 9);
            let want = alone(&mut host, l(16, 1), job.clone());
            for path in paths {
                for way in [Way::Image, Way::Ticket] {
                    let caches: Vec<_> = path.iter().map(|layout| layout.cache()).collect();
                    let got = across(&mut host, &caches, job.clone(), way);
                    assert_eq!(got, want, "{path:?} by {way:?}, prompt of {n}");
                    caches.iter().for_each(assert_quiescent);
                }
            }
        }
    }
}

struct Item {
    tokens: Vec<u32>,
    answer: String,
}

/// Every `step`-th plain question from those held out of training.
fn items(step: usize) -> Vec<Item> {
    let text = std::fs::read_to_string(format!("{}/recall_heldout.json", tiny_dir())).unwrap();
    let all: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let plain = all.iter().filter_map(|entry| Some((entry["prompt"].as_str()?, entry["answer"].as_str()?)));
    let item = |(prompt, answer): (&str, &str)| Item {
        tokens: tiny().tokenize(prompt, true, true).unwrap(),
        answer: answer.to_string(),
    };
    plain.step_by(step).map(item).collect()
}

fn question(item: &Item) -> Request {
    let mut job = request(&item.tokens, 12);
    job.sampling.ignore_eos = false;
    job
}

fn answers(item: &Item, tokens: &[u32]) -> bool {
    let mut stream = tiny().detokenizer(true).unwrap();
    let mut text: String = tokens.iter().map(|&t| stream.push(t).unwrap()).collect();
    text.push_str(&stream.flush());
    text.trim().starts_with(&item.answer)
}

#[test]
fn what_was_rounded_still_answers() {
    let mut host = Host::new();
    let items = items(20);
    assert!(items.len() >= 5, "{} items", items.len());
    for path in [
        [Layout(16, Dtype::Bf16, 1), Layout(16, Dtype::F32, 1)],
        [Layout(16, Dtype::Bf16, 1), Layout(16, Dtype::I8, 1)],
        [Layout(16, Dtype::I8, 1), Layout(16, Dtype::Bf16, 1)],
        [Layout(16, Dtype::F32, 2), Layout(5, Dtype::F16, 1)],
        [Layout(32, Dtype::F16, 1), Layout(7, Dtype::I8, 2)],
    ] {
        let caches = path.map(Layout::cache);
        let mut right = 0;
        for (i, item) in items.iter().enumerate() {
            let way = if i % 2 == 0 { Way::Image } else { Way::Ticket };
            right += usize::from(answers(item, &across(&mut host, &caches, question(item), way).0));
        }
        assert_eq!(right, items.len(), "{path:?}");
        caches.iter().for_each(assert_quiescent);
        assert_eq!(caches[1].kv().audit().by_prefix_index, 0, "{path:?}: nothing rounded is shared");
    }
}

/// A converted sequence and one computed locally from the same tokens do not affect each other.
#[test]
fn neighbours_make_no_difference_to_what_was_rounded() {
    let mut host = Host::new();
    let (from, to) = (Layout(16, Dtype::Bf16, 1), Layout(16, Dtype::I8, 1));
    let job = request(&prompt(60, 4), 30);
    let longer = request(&[prompt(60, 4), prompt(20, 5)].concat(), 4);
    let converted = across(&mut host, &[from.cache(), to.cache()], job.clone(), Way::Image);
    let own = alone(&mut host, to, longer.clone());
    for first in [true, false] {
        let here = to.cache();
        let engine = host.engine(&here, role(Role::Mixed));
        let caches = [from.cache(), here.clone()];
        if first {
            let native = host.run(&engine, longer.clone());
            assert_eq!((native.tokens, native.logprobs), own);
        }
        assert_eq!(across(&mut host, &caches, job.clone(), Way::Ticket), converted);
        let native = host.run(&engine, longer.clone());
        assert_eq!((native.tokens, native.logprobs), own, "after the other");
    }
}

#[test]
fn a_cache_may_insist_on_its_own_layout() {
    let mut host = Host::new();
    let from = Layout(16, Dtype::Bf16, 1).cache();
    let prefill = host.engine(&from, role(Role::Prefill));
    let kv = host.run(&prefill, request(&prompt(20, 1), 3)).end.unwrap().kv;
    let strict = |layout: Layout| cache(CacheOptions { no_convert: true, ..layout.options() });
    for (layout, text) in [
        (Layout(32, Dtype::Bf16, 1), "block tokens: expected 32, found 16"),
        (Layout(16, Dtype::I8, 1), "KV dtype: expected int8, found bfloat16"),
        (Layout(16, Dtype::Bf16, 2), "tensor-parallel shards: expected 2, found 1"),
    ] {
        let to = strict(layout);
        for way in [Way::Image, Way::Ticket] {
            let error = to.import(None, &data(&from, kv, way), 0).unwrap_err();
            assert_eq!(error.status, Status::Incompatible, "{error}");
            assert!(error.message.contains(text), "{text:?} in {error}");
        }
    }
    let same = strict(Layout(16, Dtype::Bf16, 1));
    let decode = host.engine(&same, role(Role::Decode));
    let landed = same.import(None, &data(&from, kv, Way::Ticket), 0).unwrap();
    assert_eq!(host.run(&decode, continuation(landed.0)).tokens.len(), 2);
    let error = ModelCache::create(&tiny(), &[], Layout(16, Dtype::Bf16, 3).options()).err().unwrap();
    assert!(error.message.contains("shards: expected a divisor of 2 KV heads, found 3"), "{error}");
}

#[test]
fn an_int8_cache_recalls() {
    let mut host = Host::new();
    let here = Layout(16, Dtype::I8, 1).cache();
    let engine = host.engine(&here, role(Role::Mixed));
    let items = items(3);
    assert!(items.len() >= 30, "{} items", items.len());
    let right = items.iter().filter(|item| answers(item, &host.run(&engine, question(item)).tokens)).count();
    assert!(right as f64 >= 0.95 * items.len() as f64, "{right} of {} right", items.len());
}
