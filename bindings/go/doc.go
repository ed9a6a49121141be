// Package cleave is disaggregated LLM inference as a library: the Go side of libcleave, which a server links to get
// prefill and decode engines over one copy of the weights, and KV handles that carry a live sequence from one engine to
// another, to another cache, process or host, into a file and back.
//
// # Objects
//
// A [Model] is loaded once. A [Cache] holds KV blocks for it on a device. An [Engine] runs over a cache, with a [Role]:
// prefill, decode or both. Engines of one cache share weights and blocks, and hand a sequence over without moving a byte. An
// engine answers a [Request] with a [Stream] of [Event]s. A sequence leaves an engine as a [KV] handle, with the last event
// of its stream, and continues in any engine that can reach the handle: directly in an engine of the same cache
// ([Request.KV]), and in another cache by its ticket ([KV.Ticket], [Cache.Import]), its image ([KV.Image]) or a file
// ([KV.Save], [Cache.LoadKV]).
//
//	model, err := cleave.Load("models/tiny")
//	cache, err := model.NewCache(cleave.CacheConfig{})
//	prefill, err := cache.NewEngine(cleave.EngineConfig{Role: cleave.RolePrefill})
//	decode, err := cache.NewEngine(cleave.EngineConfig{Role: cleave.RoleDecode})
//
//	var kv *cleave.KV
//	for event, err := range prefill.Generate(ctx, cleave.Request{Prompt: tokens, MaxNewTokens: 64}) {
//		if err != nil {
//			return err
//		}
//		if event.Type == cleave.EventToken {
//			use(event.Token) // the first token
//		}
//		kv = event.KV
//	}
//	for event, err := range decode.Generate(ctx, cleave.Request{KV: kv}) { // the handoff
//		if err != nil {
//			return err
//		}
//		if event.Type == cleave.EventToken {
//			use(event.Token)
//		}
//	}
//
// # Goroutines and threads
//
// Every function and method may be called from any goroutine at any time, also by two goroutines at once on one object.
// Close may be called while another goroutine is in a call, which then ends normally or with an error.
//
// Each queue has one goroutine that waits for it in Go's netpoller, as for a socket. Engines have threads in the library.
// Apart from these, an idle engine, queue or stream needs no thread and no CPU time. Streams keep unread events: a slow
// reader delays nobody, and costs memory for the tokens of its request, which MaxNewTokens and the model's context limit.
// A token costs no allocation (alternatives are allocated for many tokens at a time).
//
// [Load], [Model.NewCache], [Cache.NewEngine], [Cache.Pair], [Cache.Listen] with a host name, [Engine.Drain], Close of
// caches and engines, and methods of KV that copy blocks (images, files) wait for disks, devices or peers, and keep a
// thread meanwhile. All others return in microseconds, except [Stream.Next] and [KV.Wait], which block only a goroutine.
//
// # Contexts
//
// The context of a request ends it: its stream fails at once, with an error that is [context.Canceled] or
// [context.DeadlineExceeded] (and the context's cause) in [errors.Is], and the engine drops the request at its next
// step. Leaving a loop over [Engine.Generate] or [Stream.Events], and [Stream.Close], do the same. [Stream.Cancel] only
// tells the engine; the stream can be read to its end.
//
// # Ownership
//
// The caller closes the objects that New and Load functions return. Close may be called at any time, any number of times and
// in any order, because objects keep what they need. Each type documents what Close does to work in progress.
//
// A [KV] handle belongs to the caller who reads it from a stream. An accepted request consumes it, and a refused request
// leaves it as it was. Close releases a handle, and does nothing if the handle is gone, so a deferred Close is always right.
// Handles in events that nobody reads are released with their stream.
//
// The garbage collector closes forgotten objects at some point. Do not rely on it: it does not know that KV blocks are
// scarce. A handle of which a ticket was made is not released in this way, but left to its lease.
//
// # Errors
//
// Errors are of type [*Error], with a [Code] and a text that names what is at fault. Compare with [errors.Is] and the
// Err constants. A request that fails after it was accepted reports the error in the last event of its stream. The package
// does not panic and prints nothing; [SetLog] receives the log.
//
// # Linking
//
// The package needs cgo, pkg-config and an installed libcleave. If the library is not in a standard place, set
// PKG_CONFIG_PATH for the build and LD_LIBRARY_PATH for the program. The build tag cleave_static links the archive, and the
// program then needs no shared library.
package cleave
