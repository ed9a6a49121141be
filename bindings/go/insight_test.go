package cleave

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
)

func TestVersions(t *testing.T) {
	major, minor := APIVersion()
	headerMajor, headerMinor := HeaderVersion()
	if major != headerMajor || minor < headerMinor || !strings.HasPrefix(Version(), "0.") {
		t.Errorf("%s: %d.%d, compiled with %d.%d", Version(), major, minor, headerMajor, headerMinor)
	}
}

func TestDevices(t *testing.T) {
	devices := must[[]DeviceInfo](t)(Devices())
	if cpu := devices[0]; cpu.Ordinal != DeviceCPU || cpu.UUID != "CPU" || cpu.Name == "" || cpu.TotalBytes == 0 ||
		cpu.FreeBytes > cpu.TotalBytes {
		t.Errorf("%+v", cpu)
	}
	for _, ordinal := range []int{-2, len(devices) - 1, 1 << 40} {
		_, err := Device(ordinal)
		expect(t, err, ErrNotFound)
	}
}

func TestMetricsAndAudit(t *testing.T) {
	cache := newCache(t, CacheConfig{BytesPerDevice: 1 << 20})
	engine := newEngine(t, cache, EngineConfig{Role: RolePrefill})
	prompt := ask(t, "where does anna live?")
	_, end := generate(t, engine, Request{Prompt: prompt})
	eventually(t, "end of the step", func() (bool, any) {
		m, err := engine.Metrics()
		return err == nil && m.Steps > 0, m
	})
	m := must[Metrics](t)(engine.Metrics())
	if m.PromptTokens != uint64(len(prompt)) || m.GeneratedTokens != 1 || m.Steps == 0 || m.Busy <= 0 || m.StepMax < m.StepLast ||
		m.Role != RolePrefill || m.ExportsOpen != 1 || m.BlocksTotal == 0 || m.BlocksFree >= m.BlocksTotal {
		t.Errorf("%+v", m)
	}
	audit := must[Audit](t)(cache.Audit())
	if audit.Total != m.BlocksTotal || audit.ByExports != (len(prompt)+15)/16 || audit.Leaked != 0 ||
		audit.Free+audit.ByExports != audit.Total {
		t.Errorf("%+v", audit)
	}
	text := must[string](t)(MetricsText())
	if !strings.Contains(text, "\ncleave_prompt_tokens_total{model_name=\"") || strings.Contains(text, "# EOF") {
		t.Errorf("%s", text)
	}
	end.KV.Close()
	if audit := must[Audit](t)(cache.Audit()); audit.ByExports != 0 {
		t.Errorf("%+v", audit)
	}
}

// failToLoad makes the library log a line that names the path.
func failToLoad(t *testing.T, path string) {
	t.Helper()
	_, err := Load(path)
	expect(t, err, ErrNotFound)
}

func TestLog(t *testing.T) {
	var mu sync.Mutex
	var lines []string
	var fromWithin []error
	// Engines of other tests may be collected only now, and log a message in between.
	ours := func(message string) bool { return strings.Contains(message, "/no/such/") }
	sink := func(level LogLevel, target, message string) {
		if !ours(message) {
			return
		}
		err := SetLog(LogInfo, func(LogLevel, string, string) {})
		mu.Lock()
		defer mu.Unlock()
		if level != LogDebug || target == "" {
			t.Errorf("%v %q: %s", level, target, message)
		}
		lines = append(lines, message)
		fromWithin = append(fromWithin, err)
	}
	if err := SetLog(LogDebug, sink); err != nil {
		t.Fatal(err)
	}
	defer SetLog(LogOff, nil)
	failToLoad(t, "/no/such/model-1")
	// Replacing the sink waits until queued messages are delivered.
	var after []string
	if err := SetLog(LogTrace, func(_ LogLevel, _, message string) { after = append(after, message) }); err != nil {
		t.Fatal(err)
	}
	if len(lines) != 1 || !strings.Contains(lines[0], "model-1") {
		t.Errorf("%q", lines)
	}
	for _, err := range fromWithin {
		expect(t, err, ErrInvalidArgument)
	}
	failToLoad(t, "/no/such/model-2")
	if err := SetLog(LogOff, nil); err != nil {
		t.Fatal(err)
	}
	failToLoad(t, "/no/such/model-3")
	if len(lines) != 1 || !strings.Contains(strings.Join(after, "\n"), "model-2") || strings.Contains(strings.Join(after, "\n"), "model-3") {
		t.Errorf("%q %q", lines, after)
	}
	expect(t, SetLog(9, sink), ErrInvalidArgument)
	if err := SetLog(LogWarn, sink); err != nil {
		t.Fatal(err)
	}
	failToLoad(t, "/no/such/model-4")
	SetLog(LogOff, sink)
	if len(lines) != 1 {
		t.Errorf("%q", lines)
	}
}

// The last sink that was set gets the messages, even after many goroutines set one at once.
func TestLogFromManyGoroutines(t *testing.T) {
	defer SetLog(LogOff, nil)
	var all sync.WaitGroup
	for range 8 {
		all.Add(1)
		go func() {
			defer all.Done()
			for range 20 {
				if err := SetLog(LogDebug, func(LogLevel, string, string) {}); err != nil {
					t.Error(err)
				}
				failToLoad(t, "/no/such/model")
			}
		}()
	}
	all.Wait()
	lines := 0
	SetLog(LogDebug, func(_ LogLevel, _, message string) {
		if strings.Contains(message, "/no/such/") {
			lines++
		}
	})
	failToLoad(t, "/no/such/model")
	SetLog(LogOff, nil)
	if lines != 1 {
		t.Errorf("the last sink got %d lines", lines)
	}
}

func TestLogLevels(t *testing.T) {
	for level, want := range map[LogLevel]slog.Level{
		LogError: slog.LevelError, LogWarn: slog.LevelWarn, LogInfo: slog.LevelInfo, LogDebug: slog.LevelDebug, LogTrace: slog.LevelDebug - 4,
	} {
		if level.Level() != want {
			t.Errorf("%d: %v", level, level.Level())
		}
	}
}
