package cleave

// Queue is a completion queue: engines that share one are read by one goroutine. An engine that is not given one has
// its own, which is as good for most.
type Queue struct {
	object
	dispatcher *dispatcher
}

// NewQueue makes a queue that holds capacity events; 0: 4096, else 4 to 16777216. Every accepted request keeps one place
// for its last event, so that a queue bounds how many requests its engines accept at once ([ErrWouldBlock] beyond).
// Errors: [ErrInvalidArgument], [ErrIO] (no file descriptor), [ErrOutOfMemory].
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

// Close ends the queue: streams of its engines that have not ended fail with [ErrShutdown] and are cancelled, and the
// engines accept no more requests. Close the engines before it for every stream to come to its own end. It always
// returns nil, and does nothing the second time.
func (q *Queue) Close() error { return q.close() }

// Failed returns a channel that is closed once an engine of the queue has failed: see [Engine.Failed].
func (q *Queue) Failed() <-chan struct{} { return q.dispatcher.failed }

// Err returns why the first engine of the queue that failed has done so, or nil.
func (q *Queue) Err() error { return q.dispatcher.err() }
