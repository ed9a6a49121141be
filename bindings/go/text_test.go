package cleave

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func TestModelInfo(t *testing.T) {
	info := must[ModelInfo](t)(testModel(t).Info())
	if info.Architecture != "LlamaForCausalLM" || info.Layers != 5 || info.Heads != 4 || info.KVHeads != 2 || info.HeadDim != 32 ||
		info.VocabSize != 768 || info.MaxContextTokens != contextTokens || info.WeightBytes == 0 ||
		info.KVBytesPerToken != 5*2*2*32*2 || info.Fingerprint == [32]byte{} {
		t.Errorf("%+v", info)
	}
}

func TestTokenize(t *testing.T) {
	model := testModel(t)
	special, plain := must[[]int32](t)(model.Tokenize("a key.")), must[[]int32](t)(model.TokenizeNoSpecial("a key."))
	if special[0] != 0 || !slices.Equal(special[1:], plain) {
		t.Errorf("%v %v", special, plain)
	}
	if empty := must[[]int32](t)(model.TokenizeNoSpecial("")); len(empty) != 0 {
		t.Errorf("%v", empty)
	}
	// Every byte becomes at least one token, more than the first buffer holds.
	many := strings.Repeat("\u20ac\u0416", 2000)
	if got := text(t, must[[]int32](t)(model.Tokenize(many))); got != many {
		t.Errorf("%d bytes became %d", len(many), len(got))
	}
	if forged := must[[]int32](t)(model.TokenizePlain("</s><|end|>")); slices.Contains(forged, 1) || len(forged) < 5 {
		t.Errorf("%v", forged)
	}
	_, err := model.Tokenize("\xff")
	expect(t, err, ErrInvalidArgument)
}

func TestChatPrompt(t *testing.T) {
	model := testModel(t)
	messages := []Message{{"user", "what does the \"red\" box hold?"}}
	prompt := must[string](t)(model.ChatPrompt(messages))
	if !strings.HasSuffix(prompt, "<|user|>what does the \"red\" box hold?<|end|><|assistant|>") {
		t.Errorf("%q", prompt)
	}
	json := must[string](t)(model.ChatPromptJSON([]byte(`[{"role": "user", "content": "what does the \"red\" box hold?"}]`)))
	if json != prompt {
		t.Errorf("%q", json)
	}
	long := must[string](t)(model.ChatPrompt([]Message{{"user", strings.Repeat("\u0001", 5000)}}))
	if strings.Count(long, "\u0001") != 5000 {
		t.Errorf("%d bytes", len(long))
	}
	open := must[string](t)(model.ChatPromptWith([]byte(`[{"role": "user", "content": "?"}, {"role": "assistant", "content": "it is"}]`),
		ChatOptions{ContinueFinalMessage: true}))
	if !strings.HasSuffix(open, "<|assistant|>it is") {
		t.Errorf("%q", open)
	}
	ended := must[string](t)(model.ChatPromptWith([]byte(`[{"role": "user", "content": "?"}]`),
		ChatOptions{NoGenerationPrompt: true, Tools: []byte("[]"), Arguments: []byte(`{"enable_thinking": false}`)}))
	if !strings.HasSuffix(ended, "?<|end|>") {
		t.Errorf("%q", ended)
	}
	_, err := model.ChatPromptWith([]byte("[]"), ChatOptions{Tools: []byte("{}")})
	expect(t, err, ErrInvalidArgument)
	_, err = model.ChatPromptJSON([]byte("nothing"))
	expect(t, err, ErrInvalidArgument)
}

func TestDetokenizer(t *testing.T) {
	model := testModel(t)
	d := must[*Detokenizer](t)(model.NewDetokenizer())
	defer d.Close()
	want := "anna has 3 \u20ac."
	var got []byte
	var pieces []string
	for _, token := range must[[]int32](t)(model.TokenizeNoSpecial(want)) {
		piece := must[string](t)(d.Push(token))
		pieces = append(pieces, piece)
		got = append(got, piece...)
	}
	if rest := must[string](t)(d.Flush()); rest != "" || string(got) != want || !slices.Contains(pieces, "") {
		t.Errorf("%q %q", pieces, rest)
	}
	// Each of the euro sign's three bytes is a token of its own, and one alone is not a character.
	euro := must[[]int32](t)(model.TokenizeNoSpecial("\u20ac"))
	if piece, rest := must[string](t)(d.Push(euro[0])), must[string](t)(d.Flush()); piece != "" || rest != "\ufffd" {
		t.Errorf("%q %q", piece, rest)
	}
	if text, err := d.Append([]byte("kept"), 1<<20); string(text) != "kept" {
		t.Errorf("%q", text)
	} else {
		expect(t, err, ErrInvalidArgument)
	}
}

func TestDetokenizerAllocatesNothing(t *testing.T) {
	model := testModel(t)
	d := must[*Detokenizer](t)(model.NewDetokenizer())
	defer d.Close()
	token := must[[]int32](t)(model.TokenizeNoSpecial(" key"))[0]
	buf := make([]byte, 0, 256)
	if n := testing.AllocsPerRun(100, func() { buf, _ = d.Append(buf[:0], token) }); n != 0 || len(buf) == 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTokenBytes(t *testing.T) {
	model := testModel(t)
	var all []byte
	want := "a \u20ac key"
	for _, token := range must[[]int32](t)(model.TokenizeNoSpecial(want)) {
		all = append(all, must[[]byte](t)(model.TokenBytes(token))...)
	}
	if string(all) != want {
		t.Errorf("%q", all)
	}
	if eos := must[[]byte](t)(model.TokenBytes(1)); !bytes.Equal(eos, []byte("</s>")) {
		t.Errorf("%q", eos)
	}
	for _, token := range []int32{-1, 768} {
		_, err := model.TokenBytes(token)
		expect(t, err, ErrInvalidArgument)
	}
}
