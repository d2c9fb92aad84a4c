"""The embedded domains: small sets of pictures that come with the package."""
