package cleave

import (
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"
)

// threads counts the threads of the process by name. An unnamed thread has the name of the binary.
func threads(t *testing.T) map[string]int {
	t.Helper()
	tasks := must[[]os.DirEntry](t)(os.ReadDir("/proc/self/task"))
	names := map[string]int{}
	for _, task := range tasks {
		if name, err := os.ReadFile("/proc/self/task/" + task.Name() + "/comm"); err == nil {
			names[strings.TrimSpace(string(name))]++
		}
	}
	return names
}

// ownThreads counts the threads that the Go runtime or this package may have created.
func ownThreads(t *testing.T) int {
	n := 0
	for name, count := range threads(t) {
		// A thread that Go starts from within a log sink inherits that thread's name.
		if !strings.HasPrefix(name, "cleave") || name == "cleave-log" {
			n += count
		}
	}
	return n
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// Idle queues and engines use no threads except the engines' own, and no CPU time.
func TestIdleCostsNothing(t *testing.T) {
	const queues, engines = 200, 20
	cache := newCache(t, CacheConfig{})
	before := ownThreads(t)
	var all []*Queue
	for range queues {
		all = append(all, must[*Queue](t)(NewQueue(0)))
	}
	for i := range engines {
		engine := newEngine(t, cache, EngineConfig{Queue: all[i]})
		generate(t, engine, Request{Prompt: []int32{1, 2, 3}, MaxNewTokens: 2})
		newEngine(t, cache, EngineConfig{})
	}
	defer func() {
		for _, queue := range all {
			queue.Close()
		}
	}()
	// A goroutine that waits in C occupies a thread. Go itself creates a few more at will.
	if now := ownThreads(t); now > before+50 {
		t.Errorf("%d threads became %d: %v", before, now, threads(t))
	}

	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	runtime.GC()
	time.Sleep(50 * time.Millisecond)
	// At least one second must be quiet: earlier work may take time to settle.
	for n := 1; ; n++ {
		begin, busy := time.Now(), cpuTime(t)
		time.Sleep(time.Second)
		busy = cpuTime(t) - busy
		if float64(busy) <= 0.05*float64(time.Since(begin)) {
			return
		}
		if n == 60 {
			t.Fatalf("idle for %v, and busy for %v of it", time.Since(begin), busy)
		}
	}
}

// Requests that wait for tokens do not occupy threads either.
func TestWaitingReadersKeepNoThreads(t *testing.T) {
	p := newPair(t)
	before := ownThreads(t)
	kv, stream := filling(t, p.from)
	ticket := must[[]byte](t)(kv.Ticket())
	done := make(chan struct{})
	const waiting = 100
	for range waiting {
		imported := must[*KV](t)(p.to.Import(ticket))
		go func() {
			imported.Wait(testContext(t))
			imported.Close()
			done <- struct{}{}
		}()
	}
	// The library's threads have their names only once they run, and the runtime's own threads come and go.
	deadline := time.Now().Add(20 * time.Second)
	for ownThreads(t) > before+50 {
		if time.Now().After(deadline) {
			t.Errorf("%d threads became %d: %v", before, ownThreads(t), threads(t))
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	stream.Close()
	kv.Close()
	for range waiting {
		<-done
	}
}
