// Package cleave is disaggregated LLM inference as a library: the Go side of libcleave, which a server links to get
// prefill and decode engines over one copy of the weights, and KV handles that carry a live sequence from one engine to
// another, to another cache, process or host, into a file and back.
//
// # Objects
//
// A [Model] is loaded once. A [Cache] holds KV blocks for it on a device. An [Engine] runs over a cache, with a [Role]:
// prefill, decode or both; engines of one cache share everything, and hand a sequence over without moving a byte. An
// engine that is given a [Request] gives a [Stream] of [Event]s. A sequence leaves an engine as a [KV] handle, with the
// last event of its stream, and goes on in any other engine that can reach the handle: of the same cache as it is
// ([Request.KV]), of another one by its ticket ([KV.Ticket], [Cache.Import]), its image ([KV.Image]) or a file
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
//			use(event.Token) // the first one
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
// Every function and method may be called from any goroutine at any time, also two at once on one object, and also
// Close while another one is in a call: that call ends normally or with an error.
//
// Each queue has one goroutine that waits for it in Go's netpoller, as for a socket. Engines have threads of their own
// in the library; beside these, an idle engine, queue or stream keeps no thread and costs no time. Streams keep what was
// not read: a reader that is slow, or that does not read at all, holds nobody else up, and costs memory for the tokens of
// its request, which MaxNewTokens and the model's context bound. A token costs no allocation (alternatives are
// allocated for many tokens at a time).
//
// [Load], [Model.NewCache], [Cache.NewEngine], [Cache.Pair], [Cache.Listen] with a host name, [Engine.Drain], Close of
// caches and engines, and methods of KV that copy blocks (images, files) wait for disks, devices or peers, and keep a
// thread meanwhile. All others return in microseconds, apart from [Stream.Next] and [KV.Wait], which keep a goroutine
// only.
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
// What New and Load functions return is the caller's to Close. Close may be called at any time, any number of times, in
// any order: objects keep what they need of others. What it does to those that are in use is said with each.
//
// A [KV] handle is the caller's once it was read from a stream. A request that was accepted with it consumes it; one that
// was refused leaves it as it was. Close releases it, and does nothing to one that is gone, so that a deferred Close is
// right in any case. Handles in events that nobody reads any more are released with their stream.
//
// Objects that are forgotten are closed when the garbage collector finds them, some time. That is a net, no way to work:
// it does not know that KV blocks are scarce. A handle that a ticket was made of is not released so, but left to its
// lease.
//
// # Errors
//
// Errors are of type [*Error], with a [Code] and a text that names what is at fault. Compare with [errors.Is] and the
// Err constants. A request that was accepted and failed tells so with the last event of its stream. Nothing panics,
// nothing is printed: [SetLog] hears what there is to say.
//
// # Linking
//
// The package needs cgo, pkg-config and an installed libcleave (PKG_CONFIG_PATH if that is not where pkg-config looks,
// LD_LIBRARY_PATH likewise when the program runs). With the build tag cleave_static the archive is linked instead, and
// the program needs no library.
package cleave
