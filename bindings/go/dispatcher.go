package cleave

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"cleave/go/internal/capi"
)

// dispatcher owns one of the library's queues and the goroutine that reads it. While there are no events, the goroutine
// waits in Go's netpoller, as for a socket, and occupies no thread. It passes events on and never waits for their
// readers.
type dispatcher struct {
	name uintptr
	file *os.File // a duplicate of the queue's eventfd, used only for polling
	done chan struct{}

	closing sync.Once
	ending  atomic.Bool // close has begun

	mu      sync.Mutex
	slots   slots
	closed  bool
	failure error         // error of the first engine that failed
	failed  chan struct{} // closed when failure is set

	// Fields below are used by the dispatcher's goroutine only.
	batch batch
}

func newDispatcher(capacity uint32) (*dispatcher, error) {
	d, err := openDispatcher(capacity)
	if err == nil {
		go d.run()
	}
	return d, err
}

// openDispatcher creates a dispatcher whose goroutine does not run yet.
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

// watch duplicates a descriptor of the library, so that the duplicate can be closed at any time.
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
		// Go's netpoller is edge-triggered. It is armed before the function is called, and the library signals when an
		// event arrives in an empty queue. No event is lost as long as the queue is emptied before each wait.
		err = conn.Read(func(uintptr) bool { return !d.drain() })
	}
	if err != nil && !d.ending.Load() {
		d.abandonAll(newError(ErrIO, "watch the queue", err))
	}
}

// drain dispatches events until the queue is empty. It returns false if the queue is gone.
func (d *dispatcher) drain() bool {
	for {
		n, status := capi.Poll(d.name, d.batch.events[:])
		if status != 0 {
			d.abandonAll(newError(Code(status), "poll the queue"))
			return false
		}
		d.dispatch(d.batch.events[:n])
		if n < len(d.batch.events) { // the queue is empty
			d.batch.flush()
			return true
		}
	}
}

// dispatch passes events to their receivers. It looks up all receivers first, under one lock.
func (d *dispatcher) dispatch(events []capi.Event) {
	d.mu.Lock()
	for i := range events {
		event := &events[i]
		switch event.Type {
		case capi.EventEngineFailed:
			d.fail(Code(event.Status))
			d.batch.receivers[i] = nil
		case capi.EventFinished, capi.EventKVReady: // the receiver's last event
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

// err returns the error of the first engine of the queue that failed, or nil.
func (d *dispatcher) err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failure
}

// register assigns a number to r, which the library echoes in r's events. If the queue is closed, r.abandon is called.
func (d *dispatcher) register(r receiver) (tag uint64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return 0, newError(ErrShutdown, "the queue", ErrClosed)
	}
	return d.slots.add(r), nil
}

// forget frees the number of a receiver that will get no events.
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

// close ends the goroutine, dispatches the events that are still in the queue, and abandons the remaining receivers.
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
