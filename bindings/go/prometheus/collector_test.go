package prometheus

import (
	"os"
	"strings"
	"testing"

	client "github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	cleave "cleave/go"
)

// TestCollector runs two engines over one cache and gathers through a registry, which refuses duplicate series and
// families with two types.
func TestCollector(t *testing.T) {
	path := os.Getenv("CLEAVE_TEST_MODEL")
	if path == "" {
		path = "../../../models/tiny"
	}
	model, err := cleave.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer model.Close()
	cache, err := model.NewCache(cleave.CacheConfig{BytesPerDevice: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	for range 2 {
		engine, err := cache.NewEngine(cleave.EngineConfig{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer engine.Close()
	}
	registry := client.NewPedanticRegistry()
	registry.MustRegister(NewCollector())
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*dto.MetricFamily{}
	for _, family := range families {
		found[family.GetName()] = family
	}
	for name, want := range map[string]struct {
		kind   dto.MetricType
		series int
	}{
		"cleave_build_info":                  {dto.MetricType_GAUGE, 1},
		"cleave_kv_blocks":                   {dto.MetricType_GAUGE, 1},
		"cleave_prompt_tokens_total":         {dto.MetricType_COUNTER, 2},
		"cleave_time_to_first_token_seconds": {dto.MetricType_HISTOGRAM, 2},
		"cleave_step_batch_size":             {dto.MetricType_HISTOGRAM, 2},
	} {
		family := found[name]
		if family.GetType() != want.kind || len(family.GetMetric()) != want.series || family.GetHelp() == "" {
			t.Errorf("%s: %v", name, family)
		}
	}
}

func TestParse(t *testing.T) {
	text := "# TYPE a histogram\n# HELP a Some text.\n" +
		`a_bucket{m="x \"y\"\\z\n",le="0.5"} 1` + "\n" + `a_bucket{m="x \"y\"\\z\n",le="+Inf"} 3` + "\n" +
		`a_count{m="x \"y\"\\z\n"} 3` + "\n" + `a_sum{m="x \"y\"\\z\n"} 2.5` + "\n"
	var all []*dto.Metric
	if err := parse(text, func(metric client.Metric) {
		one := new(dto.Metric)
		if err := metric.Write(one); err != nil {
			t.Error(err)
		}
		all = append(all, one)
	}); err != nil {
		t.Fatal(err)
	}
	h := all[0].GetHistogram()
	if len(all) != 1 || h.GetSampleCount() != 3 || h.GetSampleSum() != 2.5 || h.GetBucket()[0].GetCumulativeCount() != 1 ||
		all[0].GetLabel()[0].GetValue() != "x \"y\"\\z\n" {
		t.Errorf("%v", all[0])
	}
	for _, bad := range []string{"a 1\n", `a{b="c} 1` + "\n", `a{b="c"} x` + "\n"} {
		if err := parse("# TYPE a gauge\n"+bad, func(client.Metric) {}); err == nil || !strings.Contains(err.Error(), "cleave: metrics") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
