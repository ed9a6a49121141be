//! The roles that read.

use super::*;

pub fn importer() {
    let importer = Importer::new();
    importer.read(&importer.reversed()).unwrap();
    let bytes = (*importer.memory).as_ref();
    let wrong = (0..BLOCK * BLOCKS).find(|&at| {
        let (block, offset) = (at / BLOCK, at % BLOCK);
        bytes[at].load(Relaxed) != byte((BLOCKS - 1 - block) * BLOCK + offset)
    });
    assert_eq!(wrong, None, "the first wrong byte");

    // In order, which is one descriptor, and leaving out the first and the last block.
    fill(&importer.memory, 7);
    let straight = |i| Piece { offset: i * BLOCK, remote_address: importer.remote + (i * BLOCK) as u64, len: BLOCK };
    importer.read(&(1..BLOCKS - 1).map(straight).collect::<Vec<_>>()).unwrap();
    let inside = BLOCK..BLOCK * (BLOCKS - 1);
    let expected = |at| if inside.contains(&at) { byte(at) } else { 7 };
    assert_eq!((0..BLOCK * BLOCKS).find(|&at| bytes[at].load(Relaxed) != expected(at)), None);

    // Several at once, from several threads, one of them dropped on the way.
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| importer.read(&importer.reversed()).unwrap());
        }
    });
    drop(importer.agent.read(&importer.peer, &importer.registration, &importer.reversed()).unwrap());
    while importer.agent.in_flight() > 0 {
        std::thread::yield_now();
    }
    importer.agent.remove_peer(&importer.peer).unwrap();
    let error = importer.read(&importer.reversed()).unwrap_err();
    assert_eq!(error.status, Status::NotFound, "{error}");
}

/// Reads until the exporter is dead, which must be an error soon, and lives on.
pub fn survivor() {
    let importer = Importer::new();
    importer.read(&importer.reversed()).unwrap();
    publish("reading", b"");
    let until = Instant::now() + Duration::from_secs(60);
    let error = loop {
        match importer.read(&importer.reversed()) {
            Ok(()) => assert!(Instant::now() < until, "reads from a dead peer go on"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.status, Status::Peer, "{error}");
    assert!(error.message.contains("exporter"), "{error}");
    assert_eq!(importer.read(&importer.reversed()).unwrap_err().status, Status::Peer);
    assert_eq!(importer.agent.in_flight(), 0);
    importer.agent.remove_peer(&importer.peer).unwrap();
    importer.agent.metadata().unwrap();
}

/// Has a read from a stopped peer in flight, and drops the agent first.
pub fn leaver() {
    let Importer { agent, memory, registration, peer, remote } = Importer::new();
    let pieces = [Piece { offset: 0, remote_address: remote, len: BLOCK * BLOCKS }];
    publish("reading", b"");
    wait_for(&here("stopped"));
    let transfer = agent.read(&peer, &registration, &pieces).unwrap();
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        assert_eq!(transfer.poll(), Ok(false), "a stopped process serves nothing");
    }
    assert_eq!(agent.in_flight(), 1);
    assert_eq!(agent.remove_peer(&peer).unwrap_err().status, Status::WouldBlock);
    let start = Instant::now();
    drop(agent);
    assert!(start.elapsed() < Duration::from_secs(10), "dropping the agent took {:?}", start.elapsed());
    let error = transfer.poll().unwrap_err();
    assert_eq!(error.status, Status::Shutdown, "{error}");
    drop((transfer, registration));
    assert_eq!(Arc::strong_count(&memory), 1, "the memory is free");
}

pub fn misuser() {
    assert_eq!(Agent::new("").err().unwrap().status, Status::InvalidArgument);
    assert_eq!(Agent::new("a\0b").err().unwrap().status, Status::InvalidArgument);
    let importer = Importer::new();
    let Importer { agent, registration, peer, remote, .. } = &importer;
    let fails = |peer: &str, registration: &Registration, piece: Piece| {
        agent.read(peer, registration, &[piece]).err().expect("must be refused")
    };
    let piece = Piece { offset: 0, remote_address: *remote, len: BLOCK };
    let end = remote + (BLOCK * BLOCKS) as u64;
    for (bad, text) in [
        (Piece { offset: BLOCK * BLOCKS - 1, ..piece }, "is not in the"),
        (Piece { len: BLOCK * BLOCKS + 1, ..piece }, "is not in the"),
        (Piece { remote_address: end - 1, ..piece }, "has not registered"),
        (Piece { remote_address: remote - 1, ..piece }, "has not registered"),
    ] {
        let error = fails(peer, registration, bad);
        assert_eq!(error.status, Status::InvalidArgument, "{error}");
        assert!(error.message.contains(text), "{error}");
    }
    assert_eq!(fails("stranger", registration, piece).status, Status::NotFound);
    assert_eq!(agent.remove_peer("stranger").unwrap_err().status, Status::NotFound);
    assert_eq!(agent.register(Arc::new(Slab(Vec::new()))).err().unwrap().status, Status::InvalidArgument);

    let other = Agent::new("other").unwrap();
    let foreign = other.register(slab(|_| 0)).unwrap();
    assert_eq!(fails(peer, &foreign, piece).status, Status::InvalidArgument);

    // Metadata: our own, cut off anywhere, good, good again, and another address under a known name.
    let own = agent.metadata().unwrap();
    assert_eq!(agent.add_peer(&own).unwrap_err().status, Status::InvalidArgument);
    let blob = other.metadata().unwrap();
    for len in 0..blob.len() {
        assert_eq!(agent.add_peer(&blob[..len]).unwrap_err().status, Status::Corrupt);
    }
    assert_eq!(agent.add_peer(&blob).unwrap(), "other");
    assert_eq!(agent.add_peer(&blob).unwrap(), "other");
    let impostor = Agent::new("other").unwrap().metadata().unwrap();
    assert_eq!(agent.add_peer(&impostor).unwrap_err().status, Status::Incompatible);

    // Registrations outlive their agent harmlessly, in either order of dropping.
    drop(other);
    drop(foreign);
    importer.read(&importer.reversed()).unwrap();
}

/// The first bytes of the functions in libc that UCX patches stay what they are.
pub fn unpatched() {
    let code = || {
        [libc::mmap as *const u8, libc::munmap as *const u8, libc::madvise as *const u8].map(|function| {
            // SAFETY: the code of a libc function, which is longer than this.
            unsafe { std::slice::from_raw_parts(function, 16) }.to_vec()
        })
    };
    let before = code();
    let importer = Importer::new();
    importer.read(&importer.reversed()).unwrap();
    assert_eq!(code(), before);
}

pub fn measurer() {
    let importer = Importer::new();
    let pieces = importer.reversed();
    let mut times: Vec<f64> = (0..21)
        .map(|_| {
            let start = Instant::now();
            importer.read(&pieces).unwrap();
            start.elapsed().as_secs_f64()
        })
        .collect();
    let first = times.remove(0);
    times.sort_by(f64::total_cmp);
    let rate = |time: f64| (BLOCK * BLOCKS) as f64 / time / 1e9;
    let one = |times: &[f64], at: f64| rate(times[(at * (times.len() - 1) as f64) as usize]);
    let small = [Piece { len: 64, ..pieces[0] }];
    let mut latencies: Vec<f64> = (0..200)
        .map(|_| {
            let start = Instant::now();
            importer.read(&small).unwrap();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    latencies.sort_by(f64::total_cmp);
    let (from, mut to) = (vec![1u8; BLOCK * BLOCKS], vec![2u8; BLOCK * BLOCKS]);
    let start = Instant::now();
    for _ in 0..5 {
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&to);
    }
    let copy = rate(start.elapsed().as_secs_f64() / 5.0);
    let text = format!(
        "{:.2} GB/s (median of {}; best {:.2}, worst {:.2}; the first read {:.2}; memcpy {copy:.2}); \
         64 bytes in {:.0} us (median)",
        one(&times, 0.5),
        times.len(),
        one(&times, 0.0),
        one(&times, 1.0),
        rate(first),
        latencies[latencies.len() / 2]
    );
    publish("measured", text.as_bytes());
}
