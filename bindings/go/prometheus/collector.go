// Package prometheus exports cleave's metrics through client_golang. It is a module of its own, so that cleave/go has no
// dependencies.
//
//	registry.MustRegister(prometheus.NewCollector())
package prometheus

import (
	client "github.com/prometheus/client_golang/prometheus"

	cleave "cleave/go"
)

// Collector collects the metrics of all engines and caches of the process, under the names of [cleave.MetricsText].
type Collector struct{}

// NewCollector returns a collector. Register it once for each process.
func NewCollector() Collector { return Collector{} }

// Describe sends nothing: engines and caches come and go, so the collector is an unchecked one.
func (Collector) Describe(chan<- *client.Desc) {}

// Collect reads the metrics. If that fails, the gatherer reports the error.
func (Collector) Collect(to chan<- client.Metric) {
	text, err := cleave.MetricsText()
	if err == nil {
		err = parse(text, func(metric client.Metric) { to <- metric })
	}
	if err != nil {
		to <- client.NewInvalidMetric(client.NewInvalidDesc(err), err)
	}
}
