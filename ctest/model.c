#include "support.h"

int main(void)
{
    cleave_error_t err;
    cleave_model_t *model = NULL, *again = NULL;
    cleave_model_info_t info = ZERO;
    int i, set = 0;
    CHECK_ERR(cleave_model_load("/no/such/directory", &model, &err), CLEAVE_ERR_NOT_FOUND);
    CHECK(has_text(&err, "/no/such/directory"));
    CHECK_ERR(cleave_model_load(NULL, &model, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(has_text(&err, "path"));
    CHECK_ERR(cleave_model_load("\xff\xfe", &model, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(has_text(&err, "UTF-8"));
    CHECK_ERR(cleave_model_load("/no/such/directory", NULL, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK(has_text(&err, "out"));
    CHECK(model == NULL);
    cleave_model_release(NULL);

    model = load_model();
    info.struct_size = sizeof info;
    CHECK_OK(cleave_model_info(model, &info, NULL));
    CHECK(info.n_layers > 0 && info.n_heads >= info.n_kv_heads && info.n_kv_heads > 0 && info.head_dim > 0);
    CHECK(info.vocab_size > 0 && info.max_context_tokens > 0);
    CHECK(info.weight_bytes > 0 && info.kv_bytes_per_token > 0);
    CHECK(info.architecture[0] != 0);
    for (i = 0; i < 32; i++)
        set |= info.fingerprint[i];
    CHECK(set != 0);

    CHECK_ERR(cleave_model_load(model_path(), &again, &err), CLEAVE_OK);
    {
        cleave_model_info_t other = ZERO;
        other.struct_size = sizeof other;
        CHECK_OK(cleave_model_info(again, &other, NULL));
        CHECK(memcmp(other.fingerprint, info.fingerprint, 32) == 0);
    }
    cleave_model_release(again);
    CHECK_STATUS(cleave_model_info(again, &info, NULL), CLEAVE_ERR_NOT_FOUND);
    cleave_model_release(again);
    CHECK_OK(cleave_model_info(model, &info, NULL));
    cleave_model_release(model);
    return 0;
}
