// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title Bytes kept as the code of a contract
/// @notice Written once and never changed. Cheaper than storage slots from two words on, to write and to
/// read. @dev The code is a STOP byte followed by the bytes, so that nobody can run them.
library CodeStore {
    /// @notice The chain refused to create the contract that would hold `length` bytes (EIP-170 limits
    /// them to 24,575).
    error CodeNotStored(uint256 length);

    /// @notice Store bytes.
    /// @param content At most 24,575 bytes.
    /// @return pointer The contract whose code holds them.
    function write(bytes memory content) internal returns (address pointer) {
        if (content.length > 24_575) revert CodeNotStored(content.length);
        // PUSH2 length, DUP1, PUSH1 10, RETURNDATASIZE (0), CODECOPY, RETURNDATASIZE (0), RETURN: ten bytes
        // that return everything behind them.
        bytes memory creation =
            bytes.concat(hex"61", bytes2(uint16(content.length + 1)), hex"80600a3d393df300", content);
        // Solidity has no other way to create raw code.
        // slither-disable-next-line assembly
        assembly ("memory-safe") {
            pointer := create(0, add(creation, 32), mload(creation))
        }
        if (pointer == address(0)) revert CodeNotStored(content.length);
    }

    /// @notice Load bytes stored by `write`.
    /// @param pointer What `write` returned.
    /// @return content The bytes.
    function read(address pointer) internal view returns (bytes memory content) {
        // Solidity has no other way to copy code without its first byte.
        // slither-disable-next-line assembly
        assembly ("memory-safe") {
            let length := sub(extcodesize(pointer), 1)
            content := mload(0x40)
            mstore(content, length)
            mstore(0x40, and(add(add(content, length), 63), not(31)))
            extcodecopy(pointer, add(content, 32), 1, length)
        }
    }
}
