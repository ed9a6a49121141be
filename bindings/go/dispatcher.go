package cleave

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"cleave/go/internal/capi"
)

// dispatcher owns a queue of the library's and the goroutine that reads it. While there are no events that goroutine
// waits in Go's netpoller, as for a socket, and no thread does. It hands events on and never waits for who reads them.
type dispatcher struct {
	name uintptr
	file *os.File // a duplicate of the queue's eventfd: only watched
	done chan struct{}

	closing sync.Once
	ending  atomic.Bool // close has begun

	mu      sync.Mutex
	slots   slots
	closed  bool
	failure error         // of the first engine that failed
	failed  chan struct{} // closed with it

	// Used by the goroutine only.
	batch batch
}

func newDispatcher(capacity uint32) (*dispatcher, error) {
	d, err := openDispatcher(capacity)
	if err == nil {
		go d.run()
	}
	return d, err
}

// openDispatcher makes one that nobody runs yet.
func openDispatcher(capacity uint32) (*dispatcher, error) {
	name, e := capi.QueueCreate(capacity)
	if e != nil {
		return nil, wrap(e)
	}
	file, err := watch(capi.QueueFD(name))
	if err != nil {
		capi.QueueDestroy(name)
		return nil, newError(ErrIO, "watch the queue's descriptor", err)
	}
	return &dispatcher{name: name, file: file, done: make(chan struct{}), failed: make(chan struct{})}, nil
}

// watch duplicates a descriptor that is the library's, so that it can be closed here at any time.
func watch(fd int) (*os.File, error) {
	duplicate, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return nil, os.NewSyscallError("fcntl", errno)
	}
	return os.NewFile(duplicate, "cleave-queue"), nil
}

func (d *dispatcher) run() {
	defer close(d.done)
	conn, err := d.file.SyscallConn()
	if err == nil {
		// Go's netpoller is edge-triggered. It is armed before the function is called, and the library signals with the
		// first event of an empty queue: reading until the queue is empty before waiting loses nothing.
		err = conn.Read(func(uintptr) bool { return !d.drain() })
	}
	if err != nil && !d.ending.Load() {
		d.abandonAll(newError(ErrIO, "watch the queue", err))
	}
}

// drain hands on what is in the queue, until it is empty. False: the queue is gone.
func (d *dispatcher) drain() bool {
	for {
		n, status := capi.Poll(d.name, d.batch.events[:])
		if status != 0 {
			d.abandonAll(newError(Code(status), "poll the queue"))
			return false
		}
		d.dispatch(d.batch.events[:n])
		if n < len(d.batch.events) { // no more waited
			d.batch.flush()
			return true
		}
	}
}

// dispatch hands events on. Their receivers are looked up first, under one lock for all.
func (d *dispatcher) dispatch(events []capi.Event) {
	d.mu.Lock()
	for i := range events {
		event := &events[i]
		switch event.Type {
		case capi.EventEngineFailed:
			d.fail(Code(event.Status))
			d.batch.receivers[i] = nil
		case capi.EventFinished, capi.EventKVReady: // the last one
			d.batch.receivers[i] = d.slots.find(event.Tag)
			d.slots.remove(event.Tag)
		default:
			d.batch.receivers[i] = d.slots.find(event.Tag)
		}
	}
	d.mu.Unlock()
	d.batch.deliver(events)
}

func (d *dispatcher) fail(code Code) {
	if d.failure == nil {
		d.failure = newError(code, "the engine has failed")
		close(d.failed)
	}
}

// err is why an engine of the queue has failed, if one has.
func (d *dispatcher) err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failure
}

// register gives r a number for the library to echo. r is told that the queue is gone, should it go.
func (d *dispatcher) register(r receiver) (tag uint64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return 0, newError(ErrShutdown, "the queue", ErrClosed)
	}
	return d.slots.add(r), nil
}

// forget takes a number back of which no event will come.
func (d *dispatcher) forget(tag uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slots.remove(tag)
}

func (d *dispatcher) abandonAll(err error) {
	d.mu.Lock()
	d.closed = true
	receivers := d.slots.takeAll()
	d.mu.Unlock()
	for _, r := range receivers {
		r.abandon(err)
	}
}

// close ends the goroutine, hands on what is in the queue still, and abandons who waits for more.
func (d *dispatcher) close() {
	d.closing.Do(func() {
		d.ending.Store(true)
		d.file.Close()
		<-d.done
		d.drain()
		capi.QueueDestroy(d.name)
		d.abandonAll(newError(ErrShutdown, "the queue", ErrClosed))
	})
}
