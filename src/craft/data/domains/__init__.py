"""The embedded domains: small sets of images that come with the package."""
