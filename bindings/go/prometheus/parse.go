package prometheus

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	client "github.com/prometheus/client_golang/prometheus"
)

// family is the metric family that the current lines belong to.
type family struct {
	name, kind, help string
	histogram        *histogram
}

// histogram gathers the lines of one series, which are consecutive: buckets, count, sum.
type histogram struct {
	buckets map[float64]uint64
	count   uint64
}

// parse sends the metrics in the library's text. It reads a subset of OpenMetrics, in which the lines of a family are
// consecutive, as are those of a histogram.
func parse(text string, send func(client.Metric)) error {
	var f family
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if meta, ok := strings.CutPrefix(line, "# "); ok {
			f.describe(strings.SplitN(meta, " ", 3))
			continue
		}
		metric, err := f.sample(line)
		if err != nil {
			return fmt.Errorf("cleave: metrics: %w in %q", err, line)
		}
		if metric != nil {
			send(metric)
		}
	}
	return nil
}

func (f *family) describe(words []string) {
	if len(words) < 3 {
		return
	}
	switch words[0] {
	case "TYPE":
		*f = family{name: words[1], kind: words[2]}
	case "HELP":
		f.help = words[2]
	}
}

// sample returns the metric that a line completes, or none if the line is part of a histogram that is not complete yet.
func (f *family) sample(line string) (client.Metric, error) {
	name, rest, _ := strings.Cut(line, "{")
	names, values, rest, err := labels(rest)
	if err != nil {
		return nil, err
	}
	value, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
	if err != nil {
		return nil, err
	}
	kind := client.GaugeValue
	switch f.kind {
	case "counter":
		kind = client.CounterValue
	case "histogram":
		return f.bucket(strings.TrimPrefix(name, f.name), names, values, value)
	}
	return client.NewConstMetric(client.NewDesc(name, f.help, names, nil), kind, value, values...)
}

func (f *family) bucket(suffix string, names, values []string, value float64) (client.Metric, error) {
	if f.histogram == nil {
		f.histogram = &histogram{buckets: map[float64]uint64{}}
	}
	switch suffix {
	case "_bucket":
		bound, err := strconv.ParseFloat(values[len(values)-1], 64)
		if err == nil && !math.IsInf(bound, 1) {
			f.histogram.buckets[bound] = uint64(value)
		}
		return nil, err
	case "_count":
		f.histogram.count = uint64(value)
		return nil, nil
	}
	h := f.histogram
	f.histogram = nil
	return client.NewConstHistogram(client.NewDesc(f.name, f.help, names, nil), h.count, value, h.buckets, values...)
}

// labels reads `a="b",c="d"} ` and returns names, values and the rest of the line.
func labels(text string) (names, values []string, rest string, err error) {
	for {
		name, after, found := strings.Cut(text, `="`)
		if !found {
			return nil, nil, "", fmt.Errorf("no label")
		}
		var value strings.Builder
		for {
			at := strings.IndexAny(after, `"\`)
			if at < 0 || at+1 == len(after) {
				return nil, nil, "", fmt.Errorf("an unfinished label")
			}
			value.WriteString(after[:at])
			closed, next := after[at] == '"', after[at+1]
			after = after[at+1:]
			if closed {
				break
			}
			if next == 'n' {
				next = '\n'
			}
			value.WriteByte(next)
			after = after[1:]
		}
		names, values = append(names, name), append(values, value.String())
		if after[0] != ',' {
			return names, values, after[1:], nil
		}
		text = after[1:]
	}
}
