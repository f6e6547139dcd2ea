// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {AddressList} from "../src/AddressList.sol";
import {CodeStore} from "../src/CodeStore.sol";
import {Quorum} from "../src/Quorum.sol";
import {Federation} from "./Federation.sol";

/// Gives the libraries' internal functions an address to call.
contract Libraries {
    function write(bytes calldata content) external returns (address) {
        return CodeStore.write(content);
    }

    function read(address pointer) external view returns (bytes memory) {
        return CodeStore.read(pointer);
    }

    function entryAt(bytes calldata list, uint256 position) external pure returns (address) {
        return AddressList.entryAt(list, position);
    }

    function put(bytes memory list, uint256 position, address entry) external pure returns (bytes memory) {
        AddressList.put(list, position, entry);
        return list;
    }

    function check(
        bytes32 digest,
        bytes calldata list,
        uint256 signers,
        bytes32[2][] calldata signatures,
        uint256 need
    ) external pure {
        Quorum.check(digest, list, signers, signatures, need);
    }

    function isSigner(bytes32 digest, address signer, bytes32[2] calldata signature)
        external
        pure
        returns (bool)
    {
        return Quorum.isSigner(digest, signer, signature);
    }
}

contract LibrariesTest is Federation {
    Libraries internal libraries;

    function setUp() public {
        libraries = new Libraries();
    }

    function test_fuzz_what_is_stored_as_code_is_read_back(bytes calldata content) public {
        address pointer = libraries.write(content);
        vm.assertEq(libraries.read(pointer), content);
        vm.assertEq(pointer.code.length, content.length + 1);
        vm.assertTrue(pointer.code[0] == 0);
    }

    function test_code_holds_at_most_24575_bytes() public {
        bytes memory content = new bytes(24_575);
        content[24_574] = 0x7f;
        vm.assertEq(libraries.read(libraries.write(content)), content);
        refuses(
            address(this),
            address(libraries),
            abi.encodeCall(Libraries.write, (new bytes(24_576))),
            abi.encodeWithSelector(CodeStore.CodeNotStored.selector, 24_576)
        );
    }

    function test_fuzz_an_entry_put_in_a_list_changes_no_other(uint8 size, uint8 place, address entry)
        public
        view
    {
        vm.assume(place < size);
        bytes memory list = new bytes(20 * uint256(size));
        for (uint256 k = 0; k < size; ++k) {
            list = libraries.put(list, k, address(uint160(k + 1)));
        }
        list = libraries.put(list, place, entry);
        vm.assertEq(list.length, 20 * uint256(size));
        for (uint256 k = 0; k < size; ++k) {
            vm.assertEq(libraries.entryAt(list, k), k == place ? entry : address(uint160(k + 1)));
        }
    }

    function test_fuzz_a_list_ends_where_it_ends(uint8 size, uint256 position) public {
        vm.assume(position >= size);
        bytes memory list = new bytes(20 * uint256(size));
        bytes memory expected = abi.encodeWithSelector(AddressList.NoSuchPosition.selector, position, size);
        refuses(STRANGER, address(libraries), abi.encodeCall(Libraries.entryAt, (list, position)), expected);
        refuses(
            STRANGER, address(libraries), abi.encodeCall(Libraries.put, (list, position, STRANGER)), expected
        );
    }

    function test_fuzz_a_quorum_is_the_least_number_above_two_thirds(uint8 n) public pure {
        uint256 need = Quorum.required(n);
        vm.assertTrue(3 * need > 2 * uint256(n));
        vm.assertTrue(3 * (need - 1) <= 2 * uint256(n));
    }

    function test_fuzz_two_quorums_share_an_honest_member(uint8 n) public pure {
        vm.assume(n >= 4);
        uint256 faulty = (uint256(n) - 1) / 3;
        vm.assertTrue(2 * Quorum.required(n) - n > faulty);
        vm.assertTrue(uint256(n) - faulty >= Quorum.required(n));
    }

    function test_fuzz_the_lowest_bit(uint256 bitmap) public pure {
        vm.assume(bitmap != 0);
        uint256 index = Quorum.lowest(bitmap);
        vm.assertEq(bitmap & ((1 << index) - 1), 0);
        vm.assertTrue(bitmap & (1 << index) != 0);
    }

    function test_fuzz_a_signature_is_good_for_its_signer_and_digest_alone(
        uint128 seed,
        bytes32 digest,
        bytes32 other
    ) public view {
        vm.assume(digest != other);
        uint256 key = uint256(seed) + 1;
        bytes32[2] memory signature = sign(key, digest);
        vm.assertTrue(libraries.isSigner(digest, vm.addr(key), signature));
        vm.assertFalse(libraries.isSigner(digest, vm.addr(key + 1), signature));
        vm.assertFalse(libraries.isSigner(other, vm.addr(key), signature));
    }

    function test_fuzz_garbage_is_not_the_signature_of_the_zero_address(
        bytes32 digest,
        bytes32[2] calldata garbage
    ) public view {
        vm.assertFalse(libraries.isSigner(digest, address(0), garbage));
    }

    function test_fuzz_the_mirrored_signature_is_refused(uint128 seed, bytes32 digest) public view {
        uint256 key = uint256(seed) + 1;
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        uint256 mirrored = CURVE_ORDER - uint256(s);
        bytes32[2] memory signature;
        signature[0] = r;
        signature[1] = bytes32((mirrored & ((1 << 255) - 1)) | (uint256(28 - v) << 255));
        vm.assertFalse(libraries.isSigner(digest, vm.addr(key), signature));
    }

    function test_fuzz_a_quorum_of_good_signatures_in_order_passes(uint16 chosen, bytes32 digest) public {
        uint256 count = 0;
        for (uint256 bits = chosen; bits != 0; bits &= bits - 1) {
            ++count;
        }
        bytes memory call = checking(digest, chosen, signAll(digest, chosen));
        if (count >= 11) {
            does(STRANGER, address(libraries), call);
        } else {
            refuses(
                STRANGER,
                address(libraries),
                call,
                abi.encodeWithSelector(Quorum.QuorumTooSmall.selector, count, 11)
            );
        }
    }

    function test_one_signature_does_not_count_for_two_seats() public {
        bytes32 digest = keccak256("digest");
        bytes32[2][] memory signatures = signAll(digest, 0x7ff);
        signatures[1] = signatures[0];
        refuses(
            STRANGER,
            address(libraries),
            checking(digest, 0x7ff, signatures),
            abi.encodeWithSelector(Quorum.BadSignature.selector, 1)
        );
    }

    function test_bits_and_signatures_must_be_as_many() public {
        bytes32 digest = keccak256("digest");
        bytes32[2][] memory signatures = signAll(digest, 0x7ff);
        refuses(
            STRANGER,
            address(libraries),
            checking(digest, 0xfff, signatures),
            abi.encodeWithSelector(Quorum.SignerCountMismatch.selector, 12, 11)
        );
        refuses(
            STRANGER,
            address(libraries),
            checking(digest, 0x3ff, signatures),
            abi.encodeWithSelector(Quorum.SignerCountMismatch.selector, 10, 11)
        );
    }

    function test_a_bit_beyond_the_seats_is_a_bad_signature() public {
        bytes32 digest = keccak256("digest");
        uint256 signers = 0x3ff | (1 << 255);
        refuses(
            STRANGER,
            address(libraries),
            checking(digest, signers, signAll(digest, signers)),
            abi.encodeWithSelector(Quorum.BadSignature.selector, 255)
        );
    }

    function test_an_empty_seat_signs_nothing() public {
        bytes32 digest = keccak256("digest");
        bytes memory list = sixteen();
        AddressList.put(list, 10, address(0));
        bytes32[2][] memory signatures = signAll(digest, 0x7ff);
        signatures[10] = [bytes32(uint256(1)), bytes32(uint256(1))];
        refuses(
            STRANGER,
            address(libraries),
            abi.encodeCall(Libraries.check, (digest, list, 0x7ff, signatures, 11)),
            abi.encodeWithSelector(Quorum.BadSignature.selector, 10)
        );
    }

    function sixteen() internal pure returns (bytes memory list) {
        for (uint256 i = 0; i < 16; ++i) {
            list = bytes.concat(list, bytes20(signerOf(i)));
        }
    }

    function checking(bytes32 digest, uint256 signers, bytes32[2][] memory signatures)
        internal
        pure
        returns (bytes memory)
    {
        return abi.encodeCall(Libraries.check, (digest, sixteen(), signers, signatures, 11));
    }
}
