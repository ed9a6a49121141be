package cleave

// Queue is a completion queue. One goroutine reads the events of all engines that share it. An engine without a Queue
// has its own, which is good enough for most programs.
type Queue struct {
	object
	dispatcher *dispatcher
}

// NewQueue creates a queue with room for capacity events: 4 to 16777216, or 0 for 4096. Every accepted request reserves
// one place for its last event, so the capacity also limits how many requests its engines accept at once; more get
// [ErrWouldBlock]. Errors: [ErrInvalidArgument], [ErrIO] (no file descriptor), [ErrOutOfMemory].
func NewQueue(capacity int) (*Queue, error) {
	var n numbers
	c := n.uint32("capacity", capacity)
	if n.err != nil {
		return nil, n.err
	}
	d, err := newDispatcher(c)
	if err != nil {
		return nil, err
	}
	q := &Queue{dispatcher: d}
	own(q, &q.object, d.name, d.close)
	return q, nil
}

// Close destroys the queue. Open streams of its engines fail with [ErrShutdown] and are cancelled, and the engines
// accept no more requests. Close the engines first to let every stream end by itself. Close always returns nil, and
// does nothing the second time.
func (q *Queue) Close() error { return q.close() }

// Failed returns a channel that is closed once an engine of the queue has failed: see [Engine.Failed].
func (q *Queue) Failed() <-chan struct{} { return q.dispatcher.failed }

// Err returns the error of the first engine of the queue that failed, or nil.
func (q *Queue) Err() error { return q.dispatcher.err() }
