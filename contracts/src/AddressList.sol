// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title Addresses side by side, 20 bytes each
/// @notice The form in which an epoch's signers are kept as code.
library AddressList {
    /// @notice The list has no such position.
    error NoSuchPosition(uint256 position, uint256 length);

    /// @notice Number of addresses in the list.
    function length(bytes memory list) internal pure returns (uint256) {
        return list.length / 20;
    }

    /// @notice The address at a position.
    function entryAt(bytes memory list, uint256 position) internal pure returns (address entry) {
        if (position >= length(list)) revert NoSuchPosition(position, length(list));
        // Solidity has no other way to load 20 bytes at once.
        // slither-disable-next-line assembly
        assembly ("memory-safe") {
            entry := shr(96, mload(add(add(list, 32), mul(position, 20))))
        }
    }

    /// @notice Replace the address at a position of the list in memory.
    function put(bytes memory list, uint256 position, address entry) internal pure {
        if (position >= length(list)) revert NoSuchPosition(position, length(list));
        // Solidity has no other way to store 20 bytes at once.
        // slither-disable-next-line assembly
        assembly ("memory-safe") {
            let place := add(add(list, 32), mul(position, 20))
            mstore(place, or(shl(96, entry), and(mload(place), sub(shl(96, 1), 1))))
        }
    }
}
