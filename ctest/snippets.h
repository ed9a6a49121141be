/* Declarations for the C snippets in the documents: variables and functions that a server has anyway. ctest/snippets.sh
 * puts each snippet into its own function, so snippets may declare the same names again. */
#include <cleave/cleave.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(call)                 \
    do {                            \
        if ((call) != CLEAVE_OK)    \
            exit(1);                \
    } while (0)

extern const char *path;
extern cleave_error_t err;
extern cleave_model_t *model;
extern cleave_cache_t *cache;
extern cleave_queue_t *queue;
extern cleave_engine_t *prefill, *decode;
extern cleave_event_t event;
extern cleave_request_t id;
extern cleave_request_desc_t ask;
extern int32_t *tokens;
extern size_t n, n_tokens;
extern const char *messages;
extern uint64_t tag;
extern unsigned char *ticket, *address;
extern size_t ticket_len, address_len;

void read_secret(const char *file, uint8_t secret[32]);
void send_to_decode_side(uint64_t request, const void *data, size_t len);
void tell_decode_side(uint64_t request, cleave_status_t status);
void ask_prefill_side(uint64_t request, const int32_t *prompt, size_t len);
void log_line(const char *format, ...);
void use(int32_t token);
