package main

import (
	"fmt"
	"testing"
)

func TestPlan(t *testing.T) {
	for _, c := range []struct {
		before          []state
		prefill, decode int
		after           string
		short           bool
	}{
		{[]state{{prefill, 0}, {decode, 0}}, 1, 1, "[prefill decode]", false},
		{[]state{{prefill, 0}, {decode, 5}, {decode, 2}}, 2, 1, "[prefill decode prefill]", false},
		{[]state{{prefill, 0}, {decode, 5}, {decode, 2}}, 1, 1, "[prefill decode idle]", false},
		{[]state{{prefill, 0}, {decode, 5}, {idle, 0}}, 1, 2, "[prefill decode decode]", false},
		{[]state{{mixed, 0}, {mixed, 1}}, 1, 1, "[prefill decode]", false},
		{[]state{{prefill, 9}, {prefill, 0}, {prefill, 1}}, 0, 0, "[idle idle idle]", false},
		{[]state{{decode, 0}, {decode, 0}}, 4, 1, "[decode prefill]", true},
		{[]state{{decode, 0}}, 1, 1, "[prefill]", true},
		{[]state{{prefill, 0}, {decode, 0}}, 0, 3, "[decode decode]", true},
	} {
		after, short := plan(c.before, c.prefill, c.decode)
		roles := make([]role, len(after))
		for i, s := range after {
			roles[i] = s.role
		}
		if fmt.Sprint(roles) != c.after || short != c.short {
			t.Errorf("%v, %d + %d: %v, %v", c.before, c.prefill, c.decode, roles, short)
		}
	}
}
