"""The port to QEMU/KVM: attach, discover, freeze and thaw, power, networks."""
