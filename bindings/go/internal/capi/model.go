package capi

// #include "bridge.h"
// #cgo noescape bridge_detokenizer_push
// #cgo nocallback bridge_detokenizer_push
// #cgo noescape bridge_detokenizer_flush
// #cgo nocallback bridge_detokenizer_flush
// #cgo noescape bridge_tokenize
// #cgo nocallback bridge_tokenize
// #cgo noescape bridge_token_bytes
// #cgo nocallback bridge_token_bytes
import "C"

import "unsafe"

// ModelInfo is cleave_model_info_t.
type ModelInfo struct {
	Architecture     string
	Layers           int
	Heads            int
	KVHeads          int
	HeadDim          int
	VocabSize        int
	MaxContextTokens int
	WeightBytes      uint64
	KVBytesPerToken  uint64
	Fingerprint      [32]byte
}

// ModelLoad is cleave_model_load.
func ModelLoad(path string) (uintptr, *Error) {
	var out C.name_t
	var err C.cleave_error_t
	cpath, bad := cString("the path", path)
	if bad != nil {
		return 0, bad
	}
	status := C.bridge_model_load(cpath, &out, &err)
	return uintptr(out), failure(status, &err)
}

// ModelRelease is cleave_model_release.
func ModelRelease(model uintptr) { C.bridge_model_release(C.name_t(model)) }

// GetModelInfo is cleave_model_info.
func GetModelInfo(model uintptr) (ModelInfo, *Error) {
	var c C.cleave_model_info_t
	c.struct_size = C.sizeof_cleave_model_info_t
	var err C.cleave_error_t
	if status := C.bridge_model_info(C.name_t(model), &c, &err); status != C.CLEAVE_OK {
		return ModelInfo{}, failure(status, &err)
	}
	info := ModelInfo{
		Architecture:     text(c.architecture[:]),
		Layers:           int(c.n_layers),
		Heads:            int(c.n_heads),
		KVHeads:          int(c.n_kv_heads),
		HeadDim:          int(c.head_dim),
		VocabSize:        int(c.vocab_size),
		MaxContextTokens: int(c.max_context_tokens),
		WeightBytes:      uint64(c.weight_bytes),
		KVBytesPerToken:  uint64(c.kv_bytes_per_token),
	}
	for i, b := range c.fingerprint {
		info.Fingerprint[i] = byte(b)
	}
	return info, nil
}

// TokenizeNoSpecial is CLEAVE_TOKENIZE_NO_SPECIAL.
const TokenizeNoSpecial = C.CLEAVE_TOKENIZE_NO_SPECIAL

// TokenizePlain is CLEAVE_TOKENIZE_PLAIN.
const TokenizePlain = C.CLEAVE_TOKENIZE_PLAIN

// Flags of [ChatPrompt].
const (
	ChatNoGenerationPrompt   = C.CLEAVE_CHAT_NO_GENERATION_PROMPT
	ChatContinueFinalMessage = C.CLEAVE_CHAT_CONTINUE_FINAL_MESSAGE
)

// Tokenize is cleave_tokenize.
func Tokenize(model uintptr, s string, flags uint32) ([]int32, *Error) {
	return enough(len(s)/3+16, func(buf *int32, capacity C.size_t, n *C.size_t) *Error {
		var err C.cleave_error_t
		status := C.bridge_tokenize(C.name_t(model), chars(unsafe.StringData(s)), C.size_t(len(s)), C.uint32_t(flags),
			(*C.int32_t)(buf), capacity, n, &err)
		return failure(status, &err)
	})
}

// TokenBytes is cleave_token_bytes.
func TokenBytes(model uintptr, token int32) ([]byte, *Error) {
	return enough(32, func(buf *byte, capacity C.size_t, n *C.size_t) *Error {
		var err C.cleave_error_t
		status := C.bridge_token_bytes(C.name_t(model), C.int32_t(token), bytes(buf), capacity, n, &err)
		return failure(status, &err)
	})
}

// ChatPrompt is cleave_chat_prompt.
func ChatPrompt(model uintptr, messages, tools, arguments []byte, flags uint32) ([]byte, *Error) {
	return enough(len(messages)+len(tools)+256, func(buf *byte, capacity C.size_t, n *C.size_t) *Error {
		var err C.cleave_error_t
		status := C.bridge_chat_prompt(C.name_t(model), chars(unsafe.SliceData(messages)), C.size_t(len(messages)),
			chars(unsafe.SliceData(tools)), C.size_t(len(tools)), chars(unsafe.SliceData(arguments)), C.size_t(len(arguments)),
			C.uint32_t(flags), chars(buf), capacity, n, &err)
		return failure(status, &err)
	})
}

// DetokenizerCreate is cleave_detokenizer_create.
func DetokenizerCreate(model uintptr) (uintptr, *Error) {
	var out C.name_t
	var err C.cleave_error_t
	status := C.bridge_detokenizer_create(C.name_t(model), &out, &err)
	return uintptr(out), failure(status, &err)
}

// DetokenizerPush is cleave_detokenizer_push into buf; n is the length of the text. If n is more than buf holds, the
// call had no effect.
func DetokenizerPush(d uintptr, token int32, buf []byte) (n int, err *Error) {
	var length C.size_t
	var text C.cleave_error_t
	status := C.bridge_detokenizer_push(C.name_t(d), C.int32_t(token), chars(unsafe.SliceData(buf)), C.size_t(len(buf)), &length, &text)
	return int(length), failure(status, &text)
}

// DetokenizerFlush is cleave_detokenizer_flush, with buf and n as in DetokenizerPush.
func DetokenizerFlush(d uintptr, buf []byte) (n int, err *Error) {
	var length C.size_t
	var text C.cleave_error_t
	status := C.bridge_detokenizer_flush(C.name_t(d), chars(unsafe.SliceData(buf)), C.size_t(len(buf)), &length, &text)
	return int(length), failure(status, &text)
}

// DetokenizerDestroy is cleave_detokenizer_destroy.
func DetokenizerDestroy(d uintptr) { C.bridge_detokenizer_destroy(C.name_t(d)) }
