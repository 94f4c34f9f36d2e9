import type { ServerIdentity } from '../server/index.ts';

/** The name in the certificate below. No trust domain of Drover has this ending (RFC 6761, `invalid`). */
export const warmUpUri = 'spiffe://rehearsal.invalid/init';

/**
 * The identity of both ends of the warm-up run. The key is public: only the warm-up run trusts this certificate. It is fixed, since init has no
 * library to create certificates. The key of its CA does not exist any more, and its dates include every date.
 */
export const warmUpIdentity: ServerIdentity = {
  caPem: `-----BEGIN CERTIFICATE-----
MIIBVzCB/aADAgECAgEBMAoGCCqGSM49BAMCMCAxHjAcBgNVBAMTFWRyb3Zlci1p
bml0IHJlaGVhcnNhbDAgFw0wMDAxMDEwMDAwMDBaGA85OTk5MTIzMTIzNTk1OVow
IDEeMBwGA1UEAxMVZHJvdmVyLWluaXQgcmVoZWFyc2FsMFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAEwSuFUtnpNu1LcZO30FNtUvVFhN+sOPUBTuClf2XY1T0QwCy6
OBWrRCWBwFfmi+ayf75+2Ipg9ssRtTa8FepKYaMmMCQwEgYDVR0TAQH/BAgwBgEB
/wIBADAOBgNVHQ8BAf8EBAMCAgQwCgYIKoZIzj0EAwIDSQAwRgIhAIY9/1Uso7W6
dh2ny03vaxNn+0llbg1csaL2dnL1VRaSAiEA9b3XXrHAb1nFqDC6ag9/HxQP+sCa
pceLcKCvR9daz+8=
-----END CERTIFICATE-----
`,
  certificatePem: `-----BEGIN CERTIFICATE-----
MIIBkDCCATagAwIBAgIBAjAKBggqhkjOPQQDAjAgMR4wHAYDVQQDExVkcm92ZXIt
aW5pdCByZWhlYXJzYWwwIBcNMDAwMTAxMDAwMDAwWhgPOTk5OTEyMzEyMzU5NTla
MBQxEjAQBgNVBAMTCXJlaGVhcnNhbDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IA
BJ+xBwTsTGVVIyNV1/17BDZve3IIWB0VJS4hEoxWbiG4fNkavziWZWrjBzw3fnof
xUx0y/npLqEVrYlV819YAvyjazBpMAwGA1UdEwEB/wQCMAAwDgYDVR0PAQH/BAQD
AgeAMB0GA1UdJQQWMBQGCCsGAQUFBwMBBggrBgEFBQcDAjAqBgNVHREEIzAhhh9z
cGlmZmU6Ly9yZWhlYXJzYWwuaW52YWxpZC9pbml0MAoGCCqGSM49BAMCA0gAMEUC
IGFl1TwJYjE3FwV0vmkt0hCnL31cuWKUyjZSKA2ocklcAiEA/5152u/p2+lI3wf4
w+t04kdAsAceqv4dZ/QkQW8FfzY=
-----END CERTIFICATE-----
`,
  keyPem: `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgUMdadvGnLoCvwcdd
p4N+lHXbQZPHXOE5Ad1hHnNyvRahRANCAASfsQcE7ExlVSMjVdf9ewQ2b3tyCFgd
FSUuIRKMVm4huHzZGr84lmVq4wc8N356H8VMdMv56S6hFa2JVfNfWAL8
-----END PRIVATE KEY-----
`,
};
