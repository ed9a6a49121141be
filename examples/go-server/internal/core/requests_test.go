package core_test

import (
	"context"
	"testing"

	"cleave/examples/go-server/internal/core"
)

// Requests without an id have none in common, so that nobody can abort them all by it.
func TestRequestsWithoutAnID(t *testing.T) {
	var requests core.Requests
	contexts := make(map[string]context.Context)
	for _, id := range []string{"", "named"} {
		ctx, end, err := requests.Begin(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		defer end()
		contexts[id] = ctx
	}
	if ended := requests.Abort(""); ended != 0 || contexts[""].Err() != nil {
		t.Errorf("%d requests were aborted by an empty id", ended)
	}
	if ended := requests.Abort("named"); ended != 1 || context.Cause(contexts["named"]) != core.ErrAborted {
		t.Errorf("%d requests were aborted by their id: %v", ended, context.Cause(contexts["named"]))
	}
	if running := requests.Running(); running != 2 {
		t.Errorf("%d requests run until they are ended", running)
	}
}
