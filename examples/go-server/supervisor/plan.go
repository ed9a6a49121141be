package main

import "slices"

// role of a worker under Dynamo. An idle one has no sidecar: its engine waits, with its weights and its cache.
type role string

const (
	prefill role = "prefill"
	decode  role = "decode"
	mixed   role = "mixed"
	idle    role = "idle"
)

// state is what a plan knows of a worker.
type state struct {
	role    role
	running int // requests
}

// plan assigns roles so that as many workers as the planner wants prefill and decode, and the others are idle. As few
// workers as possible change, and of those that may, the least busy. `short` tells that there are too few; then both
// roles get their part, and each that is wanted at least one worker if there are as many.
func plan(before []state, wantPrefill, wantDecode int) (after []state, short bool) {
	if all := len(before); wantPrefill+wantDecode > all {
		short = true
		total := wantPrefill + wantDecode
		part := (wantPrefill*all + total/2) / total
		if wantPrefill > 0 && wantDecode > 0 && all > 1 {
			part = min(max(part, 1), all-1)
		}
		wantPrefill, wantDecode = part, all-part
	}
	after = slices.Clone(before)
	left := map[role]int{prefill: wantPrefill, decode: wantDecode, idle: len(before) - wantPrefill - wantDecode}
	order := make([]int, len(before)) // the busiest first: they stay what they are
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return before[b].running - before[a].running })
	var change []int
	for _, i := range order {
		if left[before[i].role] > 0 {
			left[before[i].role]--
		} else {
			change = append(change, i)
		}
	}
	slices.Reverse(change) // the least busy begin to serve, the busiest become idle
	for _, to := range []role{prefill, decode, idle} {
		for ; left[to] > 0; left[to]-- {
			after[change[0]].role = to
			change = change[1:]
		}
	}
	return after, short
}
