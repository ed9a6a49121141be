# Copies a newer library from FROM to TO, under its full name and with its links. In the static library, symbols of C code
# that a host may define too get a prefix.
function(stage from to)
    if(NOT EXISTS "${to}" OR "${from}" IS_NEWER_THAN "${to}")
        execute_process(COMMAND "${CMAKE_COMMAND}" -E copy "${from}" "${to}.new" RESULT_VARIABLE failed)
        if(NOT failed AND STRIP)
            execute_process(COMMAND "${STRIP}" --strip-debug "${to}.new" RESULT_VARIABLE failed)
        endif()
        if(NOT failed AND OBJCOPY AND "${to}" MATCHES "\\.a$")
            # Sections for the compiler's own optimiser, which nobody else can use.
            execute_process(COMMAND "${OBJCOPY}" --remove-section=.llvmbc --remove-section=.llvmcmd
                            "--redefine-syms=${CMAKE_CURRENT_LIST_DIR}/static-symbols.txt" "${to}.new"
                            RESULT_VARIABLE failed)
        endif()
        if(failed)
            message(FATAL_ERROR "cannot stage ${from}")
        endif()
        file(RENAME "${to}.new" "${to}")
    endif()
endfunction()

file(MAKE_DIRECTORY "${TO}")
stage("${FROM}/libcleave.so" "${TO}/libcleave.so.${VERSION}")
stage("${FROM}/libcleave.a" "${TO}/libcleave.a")
execute_process(COMMAND "${CMAKE_COMMAND}" -E create_symlink "libcleave.so.${VERSION}" "${TO}/${SONAME}")
execute_process(COMMAND "${CMAKE_COMMAND}" -E create_symlink "${SONAME}" "${TO}/libcleave.so")
