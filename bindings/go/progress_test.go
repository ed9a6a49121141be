package cleave

import "testing"

func TestProgressOfWeights(t *testing.T) {
	model := testModel(t)
	info, err := model.Info()
	if err != nil {
		t.Fatal(err)
	}
	type told struct{ done, total uint64 }
	var calls []told
	goOn := false
	config := CacheConfig{BytesPerDevice: 1 << 20, Progress: func(done, total uint64) bool {
		calls = append(calls, told{done, total})
		_, err := model.NewCache(CacheConfig{})
		expect(t, err, ErrInvalidArgument)
		return goOn
	}}
	_, err = model.NewCache(config)
	expect(t, err, ErrCancelled)
	goOn = true
	cache, err := model.NewCache(config)
	if err != nil {
		t.Fatal(err)
	}
	cache.Close()
	// On the CPU the weights are mapped, so all bytes are available at once.
	all := told{info.WeightBytes, info.WeightBytes}
	if len(calls) != 2 || calls[0] != all || calls[1] != all {
		t.Errorf("%v, not twice %v", calls, all)
	}
}

func TestProgressThatPanics(t *testing.T) {
	model := testModel(t)
	func() {
		defer func() {
			if p := recover(); p != "enough" {
				t.Errorf("%v came out", p)
			}
		}()
		model.NewCache(CacheConfig{Progress: func(_, _ uint64) bool { panic("enough") }})
	}()
	newCache(t, CacheConfig{}) // the failed creation holds no lock
}
