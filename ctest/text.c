#include "support.h"

static const char *sentence = "the red box holds a key.";

int main(void)
{
    cleave_error_t err;
    cleave_model_t *model = load_model();
    cleave_detokenizer_t *d = NULL;
    int32_t tokens[64], plain[64];
    char text[1024], whole[1024];
    size_t n = 99, n_plain, got, i, used = 0;

    if (cleave_tokenize(model, "a", 1, 0, NULL, 0, &n, &err) == CLEAVE_ERR_UNSUPPORTED) {
        CHECK(has_text(&err, "tokenizer.json"));
        CHECK_ERR(cleave_detokenizer_create(model, &d, &err), CLEAVE_ERR_UNSUPPORTED);
        printf("skipped: a model without a tokenizer\n");
        return SKIPPED;
    }
    /* The first call asks for the length, the second gets the text. */
    CHECK_ERR(cleave_tokenize(model, sentence, strlen(sentence), 0, NULL, 0, &n, &err), CLEAVE_OK);
    CHECK(n > 0 && n <= 64);
    CHECK_ERR(cleave_tokenize(model, sentence, strlen(sentence), 0, tokens, n, &got, &err), CLEAVE_OK);
    CHECK_INT(got, n);
    tokens[0] = -7;
    CHECK_ERR(cleave_tokenize(model, sentence, strlen(sentence), 0, tokens, n - 1, &got, &err),
              CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_INT(got, n);
    CHECK_INT(tokens[0], -7);
    CHECK_ERR(cleave_tokenize(model, NULL, 0, CLEAVE_TOKENIZE_NO_SPECIAL, NULL, 0, &got, &err), CLEAVE_OK);
    CHECK_INT(got, 0);
    CHECK_ERR(cleave_tokenize(model, sentence, 3, 0, NULL, 5, &got, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_tokenize(model, NULL, 3, 0, NULL, 0, &got, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_tokenize(model, "\xc3", 1, 0, NULL, 0, &got, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_tokenize(model, sentence, 3, 1u << 31, NULL, 0, &got, &err), CLEAVE_ERR_UNSUPPORTED);
    CHECK_ERR(cleave_tokenize(model, sentence, 3, 0, NULL, 0, NULL, &err), CLEAVE_ERR_INVALID_ARGUMENT);

    /* Tokenizes and detokenizes the sentence. */
    CHECK_ERR(cleave_tokenize(model, sentence, strlen(sentence), CLEAVE_TOKENIZE_NO_SPECIAL, plain, 64, &n_plain, &err),
              CLEAVE_OK);
    CHECK_ERR(cleave_detokenizer_create(model, &d, &err), CLEAVE_OK);
    for (i = 0; i < n_plain; i++) {
        /* A push that asks for the length, or has too small a buffer, has no effect. */
        CHECK_OK(cleave_detokenizer_push(d, plain[i], NULL, 0, &got, NULL));
        if (got > 1)
            CHECK_STATUS(cleave_detokenizer_push(d, plain[i], text, 1, &n, NULL), CLEAVE_ERR_INVALID_ARGUMENT);
        CHECK_OK(cleave_detokenizer_push(d, plain[i], text, sizeof text, &n, NULL));
        CHECK_INT(n, got);
        CHECK_INT(text[n], 0);
        memcpy(whole + used, text, n);
        used += n;
    }
    CHECK_OK(cleave_detokenizer_flush(d, whole + used, sizeof whole - used, &n, NULL));
    used += n;
    whole[used] = 0;
    if (strcmp(whole[0] == ' ' ? whole + 1 : whole, sentence) != 0) {
        fprintf(stderr, "\"%s\"\n", whole);
        CHECK(!"the text survives");
    }
    /* Joins the bytes of the single tokens. */
    for (used = 0, i = 0; i < n_plain; i++) {
        CHECK_ERR(cleave_token_bytes(model, plain[i], NULL, 0, &got, &err), CLEAVE_OK);
        if (got > 1)
            CHECK_ERR(cleave_token_bytes(model, plain[i], whole + used, 1, &n, &err), CLEAVE_ERR_INVALID_ARGUMENT);
        CHECK_ERR(cleave_token_bytes(model, plain[i], whole + used, sizeof whole - used, &n, &err), CLEAVE_OK);
        CHECK_INT(n, got);
        used += n;
    }
    whole[used] = 0;
    CHECK(strcmp(whole[0] == ' ' ? whole + 1 : whole, sentence) == 0);
    CHECK_ERR(cleave_token_bytes(model, -1, text, sizeof text, &n, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_token_bytes(model, INT32_MAX, text, sizeof text, &n, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_token_bytes(model, plain[0], text, sizeof text, NULL, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_STATUS(cleave_detokenizer_push(d, -1, text, sizeof text, &n, NULL), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(cleave_detokenizer_push(d, INT32_MAX, text, sizeof text, &n, NULL) != CLEAVE_ERR_INTERNAL);
    cleave_detokenizer_destroy(d);
    CHECK_STATUS(cleave_detokenizer_push(d, plain[0], text, sizeof text, &n, NULL), CLEAVE_ERR_NOT_FOUND);

    /* Plain text must stay text. */
    {
        char special[64], forged[96];
        CHECK_ERR(cleave_token_bytes(model, 1, special, sizeof special, &n, &err), CLEAVE_OK);
        CHECK(n > 0 && n < sizeof special);
        special[n] = 0;
        sprintf(forged, "a%sb", special);
        CHECK_ERR(cleave_tokenize(model, forged, strlen(forged), CLEAVE_TOKENIZE_NO_SPECIAL, tokens, 64, &n, &err), CLEAVE_OK);
        for (i = 0; i < n && tokens[i] != 1; i++) {
        }
        CHECK(i < n);
        CHECK_ERR(cleave_tokenize(model, forged, strlen(forged), CLEAVE_TOKENIZE_NO_SPECIAL | CLEAVE_TOKENIZE_PLAIN, tokens, 64,
                                  &n, &err),
                  CLEAVE_OK);
        for (i = 0; i < n; i++)
            CHECK(tokens[i] != 1);
    }

    /* The chat template is tested if the model has one. */
    {
        const char *messages = "[{\"role\": \"user\", \"content\": \"hello\"}]";
        const char *open = "[{\"role\": \"user\", \"content\": \"hello\"}, {\"role\": \"assistant\", \"content\": \"well, I\"}]";
        const char *tools = "[{\"type\": \"function\", \"function\": {\"name\": \"f\"}}]";
        const char *arguments = "{\"enable_thinking\": false}";
        cleave_status_t status =
            cleave_chat_prompt(model, messages, strlen(messages), NULL, 0, NULL, 0, 0, text, sizeof text, &n, &err);
        CHECK(status == CLEAVE_OK || status == CLEAVE_ERR_UNSUPPORTED);
        if (status == CLEAVE_OK) {
            CHECK(strstr(text, "hello") != NULL && strlen(text) == n);
            CHECK_ERR(cleave_chat_prompt(model, messages, strlen(messages), tools, strlen(tools), arguments, strlen(arguments),
                                         CLEAVE_CHAT_NO_GENERATION_PROMPT, whole, sizeof whole, &got, &err),
                      CLEAVE_OK);
            CHECK(got < n && strncmp(text, whole, got) == 0);
            CHECK_ERR(cleave_chat_prompt(model, open, strlen(open), NULL, 0, NULL, 0, CLEAVE_CHAT_CONTINUE_FINAL_MESSAGE, text,
                                         sizeof text, &n, &err),
                      CLEAVE_OK);
            CHECK(n >= 7 && strcmp(text + n - 7, "well, I") == 0);
            CHECK_ERR(cleave_chat_prompt(model, "{", 1, NULL, 0, NULL, 0, 0, text, sizeof text, &n, &err),
                      CLEAVE_ERR_INVALID_ARGUMENT);
            CHECK_ERR(cleave_chat_prompt(model, messages, strlen(messages), "{}", 2, NULL, 0, 0, text, sizeof text, &n, &err),
                      CLEAVE_ERR_INVALID_ARGUMENT);
            CHECK_ERR(cleave_chat_prompt(model, messages, strlen(messages), NULL, 0, "[]", 2, 0, text, sizeof text, &n, &err),
                      CLEAVE_ERR_INVALID_ARGUMENT);
            CHECK_ERR(cleave_chat_prompt(model, messages, strlen(messages), NULL, 3, NULL, 0, 0, text, sizeof text, &n, &err),
                      CLEAVE_ERR_INVALID_ARGUMENT);
            CHECK_ERR(cleave_chat_prompt(model, messages, strlen(messages), NULL, 0, NULL, 0, 1u << 31, text, sizeof text, &n, &err),
                      CLEAVE_ERR_UNSUPPORTED);
        }
    }
    cleave_model_release(model);
    return 0;
}
