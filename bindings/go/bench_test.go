package cleave

import (
	"context"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cleave/go/internal/capi"
)

// These benchmarks measure the cost that this package adds to a token, without the cost of the model. Real engines
// generate the tokens.
//
//	ns/token      wall time, only in BenchmarkTokenFromAFullQueue: elsewhere the model dominates it
//	cpu-ns/token  CPU time of all threads except the library's
//	allocs/token  heap allocations of the whole process
const benchStreams, benchTokens = 64, 400

// submitAll starts 64 generations.
func submitAll(b *testing.B, engine *Engine) []*Stream {
	b.Helper()
	requests := make([]Request, benchStreams)
	for i := range requests {
		requests[i] = Request{Prompt: []int32{1, int32(i + 10), 3}, MaxNewTokens: benchTokens, IgnoreEOS: true}
	}
	return must[[]*Stream](b)(engine.SubmitBatch(context.Background(), requests))
}

// readAll reads each stream in its own goroutine until all streams have ended.
func readAll(b *testing.B, streams []*Stream) {
	var readers sync.WaitGroup
	for _, stream := range streams {
		readers.Add(1)
		go func() {
			defer readers.Done()
			tokens := 0
			for {
				event, err := stream.Next()
				if event.Type == EventToken {
					tokens++
				}
				if err == io.EOF {
					break
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
			if tokens != benchTokens {
				b.Errorf("%d tokens", tokens)
			}
		}()
	}
	readers.Wait()
}

func mallocs() uint64 {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.Mallocs
}

// goCPU returns the CPU time of all threads that are not the library's, in nanoseconds.
func goCPU(b *testing.B) (ns int64) {
	b.Helper()
	for _, task := range must[[]os.DirEntry](b)(os.ReadDir("/proc/self/task")) {
		dir := "/proc/self/task/" + task.Name()
		name, err := os.ReadFile(dir + "/comm")
		if err != nil || strings.HasPrefix(string(name), "cleave") {
			continue
		}
		schedule := strings.Fields(string(must[[]byte](b)(os.ReadFile(dir + "/schedstat"))))
		ns += must[int64](b)(strconv.ParseInt(schedule[0], 10, 64))
	}
	return ns
}

// Engines first fill the queue with all tokens of 64 streams. The benchmark measures the time from the start of the
// dispatcher until 64 goroutines have read their streams to the end. This covers everything between the queue and the
// reader: cgo, cleave_queue_poll, dispatch, inboxes and wake-ups.
func BenchmarkTokenFromAFullQueue(b *testing.B) {
	engineCache := newCache(b, CacheConfig{BytesPerDevice: 128 << 20})
	var spent time.Duration
	var cpuSpent int64
	var allocated uint64
	for b.Loop() {
		b.StopTimer()
		d := must[*dispatcher](b)(openDispatcher(2 * benchStreams * benchTokens))
		queue := &Queue{dispatcher: d}
		engine := must[*Engine](b)(engineCache.NewEngine(EngineConfig{Queue: queue, Threads: 1}))
		streams := submitAll(b, engine)
		if err := engine.Drain(context.Background()); err != nil {
			b.Fatal(err)
		}
		before, cpu, begin := mallocs(), goCPU(b), time.Now()
		b.StartTimer()
		go d.run()
		readAll(b, streams)
		b.StopTimer()
		spent += time.Since(begin)
		cpuSpent += goCPU(b) - cpu
		allocated += mallocs() - before
		engine.Close()
		d.close()
		b.StartTimer()
	}
	tokens := float64(b.N * benchStreams * benchTokens)
	b.ReportMetric(float64(spent)/tokens, "ns/token")
	b.ReportMetric(float64(cpuSpent)/tokens, "cpu-ns/token")
	b.ReportMetric(float64(allocated)/tokens, "allocs/token")
	b.ReportMetric(0, "ns/op")
}

// Tokens are read as they are generated, 64 per engine step. The benchmark measures the CPU time of all threads except
// the library's. This includes the Go runtime (netpoller, scheduler, collector) and the submission of the requests. An
// engine queues a token as soon as it is sampled, so most of the cost is one wake-up per token, including the kernel's
// part. The wall time is the model's.
func BenchmarkTokenAsItComes(b *testing.B) {
	engine := newEngine(b, newCache(b, CacheConfig{BytesPerDevice: 128 << 20}), EngineConfig{})
	var spent int64
	var allocated uint64
	for b.Loop() {
		before, cpu := mallocs(), goCPU(b)
		readAll(b, submitAll(b, engine))
		spent += goCPU(b) - cpu
		allocated += mallocs() - before
	}
	tokens := float64(b.N * benchStreams * benchTokens)
	b.ReportMetric(float64(spent)/tokens, "cpu-ns/token")
	b.ReportMetric(float64(allocated)/tokens, "allocs/token")
	b.ReportMetric(float64(b.Elapsed())/tokens, "wall-ns/token")
	b.ReportMetric(0, "ns/op")
}

// One call of cleave_queue_poll that finds nothing measures the cost of entering and leaving C.
func BenchmarkPoll(b *testing.B) {
	d := must[*dispatcher](b)(openDispatcher(0))
	defer capi.QueueDestroy(d.name)
	defer d.file.Close()
	b.ReportAllocs()
	for b.Loop() {
		capi.Poll(d.name, d.batch.events[:])
	}
}
