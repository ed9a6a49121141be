package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

var errGone = errors.New("the worker is gone") // returned in the middle of a request, which another worker may continue

// readEvent reads the next server-sent event of a worker: its name and its data.
func readEvent(lines *bufio.Reader) (name, data string, err error) {
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return "", "", err
		}
		line = strings.TrimRight(line, "\r\n")
		if value, ok := strings.CutPrefix(line, "data: "); ok {
			data = value
		} else if value, ok := strings.CutPrefix(line, "event: "); ok {
			name = value
		} else if line == "" {
			return name, data, nil
		}
	}
}

// relay passes a worker's stream on, and counts the chunks of each choice in `sent`, so that another worker can
// continue. It adds `ahead`, the time at which the worker got the request, to the times of its trace events. The end of
// the stream waits for the prefill worker's trace event. relay returns errGone if the stream broke off or the worker
// gave up.
func relay(a *reply, stream io.Reader, sent []int, ahead time.Duration, prefilled <-chan struct{}) error {
	lines := bufio.NewReader(stream)
	for {
		name, data, err := readEvent(lines)
		if err != nil {
			return errGone
		}
		if data == "[DONE]" {
			<-prefilled
			a.done()
			return nil
		}
		if name == "trace" {
			fields := map[string]any{}
			json.Unmarshal([]byte(data), &fields)
			if fields["phase"] == "done" {
				<-prefilled
			}
			ms, _ := fields["ms"].(float64)
			fields["ms"] = ms + milliseconds(ahead)
			a.traceEvent(fields)
			continue
		}
		var chunk struct {
			Choices []struct {
				Index int
				Delta struct{ Role string }
			}
			Error struct{ Type string }
		}
		if json.Unmarshal([]byte(data), &chunk) != nil || chunk.Error.Type == "service_unavailable" {
			return errGone
		}
		a.send(fmt.Appendf(nil, "data: %s\n\n", data))
		if chunk.Error.Type != "" {
			return nil
		}
		for _, c := range chunk.Choices {
			if c.Index >= 0 && c.Index < len(sent) {
				sent[c.Index]++
			}
			if c.Delta.Role == "" {
				a.firstToken()
			}
		}
	}
}
