// Declarations for the C++ snippets in the documents, as snippets.h has for C.
#include <cleave/cleave.hpp>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

extern const std::string path;
extern cleave::Engine *decode;
extern std::vector<cleave::Request> requests;
extern cleave::Request ask;

void use(int token);
void log_line(const char *format, ...);
void retry_later(cleave::Request request);
void prefill_elsewhere(cleave::Request request);
