#include "support.h"

int main(void)
{
    cleave_error_t err;
    cleave_model_t *model = load_model();
    cleave_cache_t *cache = make_cache(model);
    cleave_pair_report_t report = ZERO;
    char address[512];
    size_t len = 0;
    cleave_status_t status = cleave_cache_address(cache, address, sizeof address, &len, &err);
    report.struct_size = sizeof report;
    if (status == CLEAVE_OK) {
        CHECK_ERR(cleave_cache_pair(cache, address, len, 0, &report, &err), CLEAVE_OK);
        CHECK_INT(report.status, CLEAVE_OK);
    } else {
        CHECK_INT(status, CLEAVE_ERR_UNSUPPORTED);
        CHECK(has_text(&err, "image"));
        CHECK_ERR(cleave_cache_pair(cache, "x", 1, 0, &report, &err), CLEAVE_ERR_UNSUPPORTED);
    }
    CHECK_ERR(cleave_cache_address(cache, address, sizeof address, NULL, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_cache_pair(cache, NULL, 0, 0, &report, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    CHECK_ERR(cleave_cache_pair(cache, "x", 1, 0, NULL, &err), CLEAVE_ERR_INVALID_ARGUMENT);
    cleave_cache_destroy(cache);
    cleave_model_release(model);
    return 0;
}
