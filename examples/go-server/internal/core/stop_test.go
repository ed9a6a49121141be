package core

import (
	"slices"
	"testing"
)

func TestStopMatcher(t *testing.T) {
	for _, c := range []struct {
		name   string
		stops  []string
		pieces []string
		sent   []string // text sent after each piece, until the stop
		found  bool
		held   string
	}{
		{"none", nil, []string{"ab", "c"}, []string{"ab", "c"}, false, ""},
		{"within a piece", []string{"b"}, []string{"abc"}, []string{"a"}, true, ""},
		{"across pieces", []string{"bcd"}, []string{"ab", "c", "de"}, []string{"a", "", ""}, true, ""},
		{"not after all", []string{"bcd"}, []string{"ab", "c", "x"}, []string{"a", "", "bcx"}, false, ""},
		{"begins anew in what is held", []string{"aab"}, []string{"a", "a", "a", "b"}, []string{"", "", "a", ""}, true, ""},
		{"the earliest of several", []string{"d", "bc"}, []string{"abcd"}, []string{"a"}, true, ""},
		{"the longest beginning is held", []string{"cx", "bcd"}, []string{"abc"}, []string{"a"}, false, "bc"},
		{"characters of several bytes", []string{"é!"}, []string{"caf", "é", "è"}, []string{"caf", "", "éè"}, false, ""},
		{"held at the end", []string{"###"}, []string{"a##"}, []string{"a"}, false, "##"},
	} {
		m := stopMatcher{stops: c.stops}
		var sent []string
		for _, piece := range c.pieces {
			sent = append(sent, m.push(piece))
			if m.found != "" {
				break
			}
		}
		if !slices.Equal(sent, c.sent) || (m.found != "") != c.found || m.held != c.held {
			t.Errorf("%s: sent %q, found %q, held %q", c.name, sent, m.found, m.held)
		}
	}
}
