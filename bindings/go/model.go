package cleave

import (
	"runtime"

	"cleave/go/internal/capi"
)

// Model is an opened Hugging Face model directory: config, tokenizer and mapped weights. Its methods may be called from
// any goroutine.
type Model struct{ object }

// ModelInfo describes a model.
type ModelInfo struct {
	// Architecture is the name in config.json, such as "LlamaForCausalLM".
	Architecture string
	Layers       int
	// Heads is the number of query heads.
	Heads     int
	KVHeads   int
	HeadDim   int
	VocabSize int
	// MaxContextTokens is the number of positions that the model supports; a request cannot be longer.
	MaxContextTokens int
	// WeightBytes is the size of the weights as stored.
	WeightBytes uint64
	// KVBytesPerToken is the size of the keys and values of one token over all layers, in the model's default KV dtype.
	KVBytesPerToken uint64
	// Fingerprint is a hash of config and weights. Models with equal fingerprints can exchange KV.
	Fingerprint [32]byte
}

// Load opens the model in the directory path (config.json, safetensors, tokenizer.json) and validates all of it.
// Without tokenizer files everything except text works. Load reads the headers of all files, and the weights once.
//
// Errors: [ErrNotFound] (directory or file), [ErrCorrupt] (the text names file, tensor and reason), [ErrUnsupported]
// (architecture, rope variant, quantisation), [ErrIO], [ErrOutOfMemory].
func Load(path string) (*Model, error) {
	name, e := capi.ModelLoad(path)
	if e != nil {
		return nil, wrap(e)
	}
	m := &Model{}
	own(m, &m.object, name, func() { capi.ModelRelease(name) })
	return m, nil
}

// Close releases the model. Caches and detokenizers made from it keep what they need, so the model may be closed as
// soon as they exist. Close always returns nil, and does nothing the second time.
func (m *Model) Close() error { return m.close() }

// Info describes the model.
func (m *Model) Info() (ModelInfo, error) {
	defer runtime.KeepAlive(m)
	info, e := capi.GetModelInfo(m.name)
	return ModelInfo(info), m.wrap(e)
}
