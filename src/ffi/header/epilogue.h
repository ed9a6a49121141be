
#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* CLEAVE_H */
