"""People who log in with their own organisation's issuer (OpenID Connect), a tenant each."""
